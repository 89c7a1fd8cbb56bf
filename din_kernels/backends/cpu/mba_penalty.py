"""`mba_penalty` on the CPU."""

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
from din_kernels.backends.compiled import Description, readable_counts
from din_kernels.backends.cpu.sparse_update import refuses as _refuses


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None: as for `sparse_update`."""
    return _refuses(request)


def forward(call: MbaPenaltyCall) -> MbaPenaltyResult:
    """Kernel call of the op's forward."""
    from din_kernels import _cpu

    described = Description()
    saved = MbaPenaltySaved(
        unique=torch.empty(call.ids.numel(), dtype=torch.int64, device="cpu"),
        unique_count=torch.empty((), dtype=torch.int64, device="cpu"),
    )
    penalty = _cpu.mba_penalty_forward(
        described.of(call._replace(counts=readable_counts(call.counts))), described.of(saved), torch.get_num_threads()
    )
    return MbaPenaltyResult(torch.tensor(penalty, dtype=arithmetic_dtype(call.weight.dtype), device="cpu"), *saved)


def backward(call: MbaPenaltyCall, saved: MbaPenaltySaved, grads: MbaPenaltyGrads) -> torch.Tensor:
    """Kernel call of the op's backward: gradients of rows unique[:entries], or of all of weight."""
    from din_kernels import _cpu

    count = int(saved.unique_count)
    if call.sparse:
        found = call.weight.new_empty(grads.entries, call.weight.shape[1])
        found[count:] = 0
    else:
        found = torch.zeros_like(call.weight, memory_format=torch.contiguous_format)
    described = Description()
    _cpu.mba_penalty_backward(
        described.of(call._replace(counts=readable_counts(call.counts))),
        described.of(saved),
        count,
        float(grads.penalty),
        {"weight": described.array(found)},
        torch.get_num_threads(),
    )
    return found
