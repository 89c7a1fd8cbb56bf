"""`mba_penalty` on a GPU."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import MbaPenaltyCall, MbaPenaltyGrads, MbaPenaltyResult, MbaPenaltySaved
from din_kernels.backends.compiled import Description, readable_counts
from din_kernels.backends.cuda import compiled, stream_of, workspace
from din_kernels.backends.cuda.sparse_update import refuses as _refuses


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None: as for `sparse_update`."""
    return _refuses(request)


def forward(call: MbaPenaltyCall) -> MbaPenaltyResult:
    """Kernel call of the op's forward."""
    kernels, described, weight, ids = compiled(), Description(), call.weight, call.ids
    result = MbaPenaltyResult(
        penalty=weight.new_zeros((), dtype=torch.float32),
        unique=ids.new_empty(ids.numel(), dtype=torch.int64),
        unique_count=ids.new_zeros((), dtype=torch.int64),
    )
    if not ids.numel() or not weight.numel():
        result.unique.fill_(-1)
        return result
    scratch = workspace("mba_penalty", weight, kernels.mba_penalty_workspace(weight.shape[0], ids.numel()))
    with stream_of(weight) as stream:
        kernels.mba_penalty_forward(
            described.of(call._replace(counts=readable_counts(call.counts))),
            described.of(result),
            {"workspace": described.array(scratch)},
            stream,
        )
    return result


def backward(call: MbaPenaltyCall, saved: MbaPenaltySaved, grads: MbaPenaltyGrads) -> torch.Tensor:
    """Kernel call of the op's backward: gradients of rows unique[:entries], or of all of weight."""
    kernels, described, weight = compiled(), Description(), call.weight
    if call.sparse:
        found = weight.new_empty(grads.entries, weight.shape[1])
    else:
        found = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    if found.numel() and saved.unique.numel():
        with stream_of(weight) as stream:
            kernels.mba_penalty_backward(
                described.of(call._replace(counts=readable_counts(call.counts))),
                described.of(saved),
                described.of(grads._replace(penalty=grads.penalty.to(torch.float32))),
                {"weight": described.array(found)},
                stream,
            )
    return found
