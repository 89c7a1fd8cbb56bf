"""`sparse_update` on the CPU: tensors to pointers for the compiled core."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import SparseUpdateCall, Table
from din_kernels.backends.cpu import name_of, pointer, refuses_tensors

COUNT_TYPES = (torch.int32, torch.int64, torch.float32, torch.float64)


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    reason, options = refuses_tensors(request), request.options
    if reason is not None:
        return reason
    if not options.get("contiguous", True):
        return "weight and states must be contiguous"
    for name in ("rows", "entries"):
        if options.get(name, 0) >= 2**32:
            return f"{name} must be below 2^32, got {options[name]}"
    return None


def counts_array(counts: torch.Tensor | None) -> tuple[torch.Tensor | None, int, str]:
    """Counts as the core takes them: the tensor to keep alive, its address and the name of its type."""
    if counts is None:
        return None, 0, "int64"
    if counts.dtype not in COUNT_TYPES:
        counts = counts.to(torch.float32)
    counts = counts.contiguous()
    return counts, counts.data_ptr(), name_of(counts.dtype)


def forward(call: SparseUpdateCall) -> None:
    """Kernel calls of the op, one per table."""
    for table in call.tables():
        if table.ids.numel():
            _update(table, call.rule)


def _update(table: Table, rule: str) -> None:
    from din_kernels import _cpu

    weight, ids, grads, hyper = table.weight, table.ids.contiguous(), table.grads.contiguous(), table.hyper
    _alive, *counts = counts_array(table.counts if hyper.coeff else None)
    first, second = [*table.states, None, None][:2]
    _cpu.sparse_update(
        name_of(weight.dtype),
        *weight.shape,
        ids.numel(),
        weight.data_ptr(),
        pointer(first),
        pointer(second),
        ids.data_ptr(),
        name_of(ids.dtype),
        int(ids.max()),
        grads.data_ptr(),
        *counts,
        table.padding_idx,
        rule,
        *hyper,
        torch.get_num_threads(),
    )
