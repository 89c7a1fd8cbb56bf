"""`sparse_update` on the CPU."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import SparseUpdateCall
from din_kernels.backends.compiled import Description, readable_counts
from din_kernels.backends.cpu import refuses_tensors


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


def forward(call: SparseUpdateCall) -> None:
    """Kernel call of the op, for all tables."""
    from din_kernels import _cpu

    described = Description()
    counts = [None if each is None else readable_counts(each) for each in call.counts]
    _cpu.sparse_update(described.of(call._replace(counts=counts)), torch.get_num_threads())
