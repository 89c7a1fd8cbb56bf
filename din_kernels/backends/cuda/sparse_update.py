"""`sparse_update` on a GPU: tensors to pointers for the CUDA kernels."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.cuda import compiled, name_of, pointer, refuses_tensors, stream_of, workspace

MAX_ROWS = 2**31  # a bitmap of the rows takes a quarter of a byte each, and ranks are 32-bit
_COUNT_TYPES = (torch.int32, torch.int64, torch.float32, torch.float64)


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    reason = refuses_tensors(request)
    if reason is not None:
        return reason
    if not request.options.get("contiguous", True):
        return "weight and states must be contiguous"
    for name in ("rows", "entries"):
        if request.options.get(name, 0) >= MAX_ROWS:
            return f"{name} must be below 2^31, got {request.options[name]}"
    return None


def counts_array(counts: torch.Tensor | None) -> tuple[torch.Tensor | None, int, str]:
    """Counts as the kernels take them: the tensor to keep alive, its address and the name of its type."""
    if counts is None:
        return None, 0, "int64"
    if counts.dtype not in _COUNT_TYPES:
        counts = counts.to(torch.float32)
    counts = counts.contiguous()
    return counts, counts.data_ptr(), name_of(counts.dtype)


def sparse_update(rule, weight, states, ids, grads, counts, padding_idx, hyper) -> None:
    """Kernel call for one table; weight `[V, D]` and states are updated in place."""
    if not ids.numel() or not weight.numel():
        return
    kernels = compiled()
    ids, grads = ids.contiguous(), grads.contiguous()
    counts, counts_address, counts_type = counts_array(counts if hyper.coeff else None)
    first, second = [*states, None, None][:2]
    scratch = workspace("sparse_update", weight, kernels.sparse_update_workspace(*weight.shape, ids.numel()))
    with stream_of(weight) as stream:
        kernels.sparse_update(
            name_of(weight.dtype), *weight.shape, ids.numel(), weight.data_ptr(), pointer(first), pointer(second),
            ids.data_ptr(), name_of(ids.dtype), grads.data_ptr(), counts_address, counts_type,
            -1 if padding_idx is None else padding_idx, rule, hyper.lr, hyper.step, hyper.beta1, hyper.beta2,
            hyper.eps, hyper.coeff, bool(hyper.maximize), bool(hyper.decoupled),
            torch.are_deterministic_algorithms_enabled(), scratch.data_ptr(), stream,
        )  # fmt: skip
