"""`sparse_update` on a GPU: tensors to pointers for the CUDA kernels."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import SparseUpdateCall, Table
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


def forward(call: SparseUpdateCall) -> None:
    """Kernel calls of the op, one per table."""
    for table in call.tables():
        if table.ids.numel() and table.weight.numel():
            _update(table, call.rule)


def _update(table: Table, rule: str) -> None:
    kernels, weight, hyper = compiled(), table.weight, table.hyper
    ids, grads = table.ids.contiguous(), table.grads.contiguous()
    _alive, *counts = counts_array(table.counts if hyper.coeff else None)
    first, second = [*table.states, None, None][:2]
    scratch = workspace("sparse_update", weight, kernels.sparse_update_workspace(*weight.shape, ids.numel()))
    with stream_of(weight) as stream:
        kernels.sparse_update(
            name_of(weight.dtype),
            *weight.shape,
            ids.numel(),
            weight.data_ptr(),
            pointer(first),
            pointer(second),
            ids.data_ptr(),
            name_of(ids.dtype),
            grads.data_ptr(),
            *counts,
            table.padding_idx,
            rule,
            *hyper,
            torch.are_deterministic_algorithms_enabled(),
            scratch.data_ptr(),
            stream,
        )
