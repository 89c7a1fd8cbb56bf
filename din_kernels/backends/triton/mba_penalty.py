"""`mba_penalty` in Triton: ids are sorted; the first of each run of equal ids stands for the row."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from din_kernels.backends import Request
from din_kernels.backends.calls import MbaPenaltyCall, MbaPenaltyGrads, MbaPenaltyResult, MbaPenaltySaved
from din_kernels.backends.triton import cdiv, next_power_of_2, on_device_of, refuses_tensors
from din_kernels.backends.triton.blocks import narrow
from din_kernels.backends.triton.launch import launch

ELEMENTS = 4096  # of a tile [ENTRIES, COLUMNS]: 32 per thread of 4 warps


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    return refuses_tensors(request)


@triton.jit(do_not_specialize=["entries", "padding_idx"])
def mark_kernel(
    ids,  # [N], sorted
    first,  # [N] int64: 1 where a run of equal ids begins, padding_idx left out
    entries,  # N
    padding_idx,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < entries
    id = tl.load(ids + entry, mask=inside, other=0)
    before = tl.load(ids + entry - 1, mask=inside & (entry > 0), other=-1)
    tl.store(first + entry, ((id != before) & (id != padding_idx)).to(tl.int64), mask=inside)


class Runs(NamedTuple):
    """Runs of equal ids."""

    ids: torch.Tensor  # [N], sorted
    first: torch.Tensor  # [N], by mark_kernel
    rank: torch.Tensor  # [N], inclusive sum of first


@triton.jit(do_not_specialize=["entries"])
def penalty_kernel(
    weight,  # [V, D]
    runs,  # Runs
    counts,  # [V]
    unique,  # [N], filled with -1
    partials,  # [programs] fp32
    entries,  # N
    dim,  # D
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes unique ids and, per program, the sum of ||w_j||^2 / n_j."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    stands = tl.load(runs.first + entry, mask=entry < entries, other=0) > 0
    id = tl.load(runs.ids + entry, mask=stands, other=0).to(tl.int64)
    tl.store(unique + tl.load(runs.rank + entry, mask=stands, other=1) - 1, id, mask=stands)
    column = tl.arange(0, COLUMNS)
    inside = stands[:, None] & (column < dim)[None, :]
    w = tl.load(weight + id[:, None] * dim + column[None, :], mask=inside, other=0.0).to(tl.float32)
    n = tl.maximum(tl.load(counts + id, mask=stands, other=1).to(tl.float32), 1.0)
    tl.store(partials + tl.program_id(0), tl.sum(tl.sum(w * w, 1) / n, 0))


@triton.jit(do_not_specialize=["entries"])
def gradient_kernel(
    grad,  # []
    weight,  # [V, D]
    unique,  # [N]
    unique_count,  # []
    counts,  # [V]
    out,  # [entries, D], or dense [V, D]
    entries,
    dim,  # D
    coeff,
    DENSE: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """d penalty / d w_j = coeff w_j / n_j, at row j of out (dense) or at j's rank, zero behind their number."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    holds = (entry < entries) & (entry < tl.load(unique_count))
    id = tl.load(unique + entry, mask=holds, other=0)
    column = tl.arange(0, COLUMNS)
    columns = (column < dim)[None, :]
    w = tl.load(weight + id[:, None] * dim + column[None, :], mask=holds[:, None] & columns, other=0.0).to(tl.float32)
    n = tl.maximum(tl.load(counts + id, mask=holds, other=1).to(tl.float32), 1.0)
    rows = tl.load(grad).to(tl.float32) * (coeff / n)[:, None] * w
    if DENSE:
        row, written = id, holds
    else:
        row, written = entry, entry < entries
        rows = tl.where(holds[:, None], rows, 0.0)
    tl.store(
        out + row[:, None] * dim + column[None, :], narrow(rows, out.dtype.element_ty), mask=written[:, None] & columns
    )


def _tile(dim: int) -> dict[str, int]:
    columns = next_power_of_2(dim)
    return {"ENTRIES": max(1, ELEMENTS // columns), "COLUMNS": columns}


def forward(call: MbaPenaltyCall) -> MbaPenaltyResult:
    """Kernel calls of the op's forward."""
    weight, counts = call.weight.contiguous(), call.counts.contiguous()
    entries, dim = call.ids.numel(), weight.shape[1]
    unique = torch.full((entries,), -1, dtype=torch.int64, device=weight.device)
    if not entries or not dim:
        nothing = weight.new_zeros((), dtype=torch.float32)
        return MbaPenaltyResult(nothing, unique, torch.zeros((), dtype=torch.int64, device=weight.device))
    ids = torch.sort(call.ids).values
    first = torch.empty_like(unique)
    shape = _tile(dim)
    partials = weight.new_empty(cdiv(entries, shape["ENTRIES"]), dtype=torch.float32)
    with on_device_of(weight):
        marks = (ids, first, entries, call.padding_idx)
        launch(mark_kernel, (cdiv(entries, 1024),), marks, {"BLOCK": 1024}, {})
        rank = first.cumsum(0)
        runs = Runs(ids, first, rank)
        launch(penalty_kernel, partials.shape, (weight, runs, counts, unique, partials, entries, dim), shape, {})
    return MbaPenaltyResult(0.5 * call.coeff * partials.sum(), unique, rank[-1].clone())


def backward(call: MbaPenaltyCall, saved: MbaPenaltySaved, grads: MbaPenaltyGrads) -> torch.Tensor:
    """Kernel call of the op's backward: gradients of rows unique[:entries], or of all of weight."""
    weight, counts, entries = call.weight.contiguous(), call.counts.contiguous(), grads.entries
    dim = weight.shape[1]
    out = weight.new_empty(entries, dim) if call.sparse else torch.zeros_like(weight)
    if entries and dim:
        constants = {"DENSE": not call.sparse} | _tile(dim)
        rows = (weight, saved.unique, saved.unique_count, counts)
        arguments = (grads.penalty, *rows, out, entries, dim, call.coeff)
        with on_device_of(weight):
            launch(gradient_kernel, (cdiv(entries, constants["ENTRIES"]),), arguments, constants, {})
    return out
