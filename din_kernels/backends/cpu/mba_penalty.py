"""`mba_penalty` on the CPU: tensors to pointers for the compiled core."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import (
    MbaPenaltyCall,
    MbaPenaltyGrads,
    MbaPenaltyResult,
    MbaPenaltySaved,
    arithmetic_dtype,
)
from din_kernels.backends.cpu import name_of
from din_kernels.backends.cpu.sparse_update import counts_array
from din_kernels.backends.cpu.sparse_update import refuses as _refuses


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None: as for `sparse_update`."""
    return _refuses(request)


def forward(call: MbaPenaltyCall) -> MbaPenaltyResult:
    """Kernel call of the op's forward."""
    from din_kernels import _cpu

    weight, ids = call.weight.contiguous(), call.ids.contiguous()
    _alive, *counts = counts_array(call.counts)
    unique = torch.empty(ids.numel(), dtype=torch.int64)
    penalty = _cpu.mba_penalty_forward(
        name_of(weight.dtype),
        *weight.shape,
        ids.numel(),
        weight.data_ptr(),
        ids.data_ptr(),
        name_of(ids.dtype),
        int(ids.max()) if ids.numel() else 0,
        *counts,
        call.coeff,
        call.padding_idx,
        unique.data_ptr(),
        torch.get_num_threads(),
    )
    return MbaPenaltyResult(
        penalty=torch.tensor(penalty, dtype=arithmetic_dtype(weight.dtype)),
        unique=unique,
        unique_count=(unique >= 0).sum(),
    )


def backward(call: MbaPenaltyCall, saved: MbaPenaltySaved, grads: MbaPenaltyGrads) -> torch.Tensor:
    """Kernel call of the op's backward: gradients of rows unique[:entries], or of all of weight."""
    from din_kernels import _cpu

    weight, unique, count = call.weight.contiguous(), saved.unique.contiguous(), int(saved.unique_count)
    _alive, *counts = counts_array(call.counts)
    if call.sparse:
        found = weight.new_empty(grads.entries, weight.shape[1])
        found[count:] = 0
    else:
        found = torch.zeros_like(weight)
    _cpu.mba_penalty_backward(
        name_of(weight.dtype),
        *weight.shape,
        unique.numel(),
        weight.data_ptr(),
        unique.data_ptr(),
        count,
        *counts,
        call.coeff,
        float(grads.penalty),
        not call.sparse,
        found.data_ptr(),
        torch.get_num_threads(),
    )
    return found
