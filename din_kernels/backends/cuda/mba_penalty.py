"""`mba_penalty` on a GPU: tensors to pointers for the CUDA kernels."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import MbaPenaltyCall, MbaPenaltyGrads, MbaPenaltyResult, MbaPenaltySaved
from din_kernels.backends.cuda import compiled, name_of, stream_of, workspace
from din_kernels.backends.cuda.sparse_update import counts_array
from din_kernels.backends.cuda.sparse_update import refuses as _refuses


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None: as for `sparse_update`."""
    return _refuses(request)


def forward(call: MbaPenaltyCall) -> MbaPenaltyResult:
    """Kernel call of the op's forward."""
    kernels, weight, ids = compiled(), call.weight.contiguous(), call.ids.contiguous()
    _alive, *counts = counts_array(call.counts)
    unique, unique_count = ids.new_empty(ids.numel(), dtype=torch.int64), ids.new_zeros((), dtype=torch.int64)
    penalty = weight.new_zeros((), dtype=torch.float32)
    if ids.numel() and weight.numel():
        scratch = workspace("mba_penalty", weight, kernels.mba_penalty_workspace(weight.shape[0], ids.numel()))
        with stream_of(weight) as stream:
            kernels.mba_penalty_forward(
                name_of(weight.dtype),
                *weight.shape,
                ids.numel(),
                weight.data_ptr(),
                ids.data_ptr(),
                name_of(ids.dtype),
                *counts,
                call.coeff,
                call.padding_idx,
                unique.data_ptr(),
                unique_count.data_ptr(),
                penalty.data_ptr(),
                scratch.data_ptr(),
                stream,
            )
    else:
        unique.fill_(-1)
    return MbaPenaltyResult(penalty, unique, unique_count)


def backward(call: MbaPenaltyCall, saved: MbaPenaltySaved, grads: MbaPenaltyGrads) -> torch.Tensor:
    """Kernel call of the op's backward: gradients of rows unique[:entries], or of all of weight."""
    kernels, weight, unique = compiled(), call.weight.contiguous(), saved.unique.contiguous()
    _alive, *counts = counts_array(call.counts)
    grad = grads.penalty.to(torch.float32)
    found = weight.new_empty(grads.entries, weight.shape[1]) if call.sparse else torch.zeros_like(weight)
    if found.numel() and unique.numel():
        with stream_of(weight) as stream:
            kernels.mba_penalty_backward(
                name_of(weight.dtype),
                *weight.shape,
                unique.numel(),
                weight.data_ptr(),
                unique.data_ptr(),
                saved.unique_count.data_ptr(),
                *counts,
                call.coeff,
                grad.data_ptr(),
                not call.sparse,
                grads.entries if call.sparse else unique.numel(),
                found.data_ptr(),
                stream,
            )
    return found
