"""`sparse_update` on a GPU."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import SparseUpdateCall
from din_kernels.backends.compiled import Description, readable_counts
from din_kernels.backends.cuda import compiled, refuses_tensors, stream_of, workspace

MAX_ROWS = 2**31  # a bitmap of the rows takes a quarter of a byte each, and ranks are 32-bit


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


def forward(call: SparseUpdateCall) -> None:
    """Kernel call of the op, for all tables one after the other."""
    kernels, described = compiled(), Description()
    sizes = [
        kernels.sparse_update_workspace(*weight.shape, ids.numel())
        for weight, ids in zip(call.weights, call.ids, strict=True)
        if weight.numel() and ids.numel()
    ]
    if not sizes:
        return
    launch = {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "workspace": described.array(workspace("sparse_update", call.weights[0], max(sizes))),
    }
    counts = [None if each is None else readable_counts(each) for each in call.counts]
    with stream_of(call.weights[0]) as stream:
        kernels.sparse_update(described.of(call._replace(counts=counts)), launch, stream)
