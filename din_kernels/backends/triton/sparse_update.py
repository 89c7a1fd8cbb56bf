"""`sparse_update` in Triton: ids are sorted once, then one pass sums, regularizes and updates each touched row.

Sums run in the order of the sorted ids (the sort is stable) and nothing is added atomically, so results are the same
bit for bit from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from din_kernels.backends import Request
from din_kernels.backends.triton import on_device_of, refuses_tensors
from din_kernels.backends.triton.blocks import narrow

# A program walks over this many sorted entries, one row [D] at a time. Few, so that many programs wait for memory at
# once: 52,000 ids make 6,500 programs.
BLOCK = 8
ELEMENTS = 1024  # of a tile [HEADS, COLUMNS] of partial sums: 32 per thread of one warp, twice that costs 22 registers


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    if not request.options.get("contiguous", True):
        return "weight and states must be contiguous"
    return refuses_tensors(request)


@triton.jit
def count_of(
    counts,  # [V], n_j
    id,
):
    """n_j as fp32; 0 (never seen in training) counts as 1, this batch."""
    return tl.maximum(tl.load(counts + id).to(tl.float32), 1.0)


@triton.jit(do_not_specialize=["entries"])
def partial_kernel(
    ids,  # [N], sorted
    order,  # [N], where each came from
    grads,  # [N, D]
    partials,  # [blocks, D] fp32
    entries,  # N
    dim,  # D
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,  # D rounded up to a power of two
):
    """partials[b] = what block b holds of a run of equal ids that began in an earlier block; else not written."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    id = tl.load(ids + first)
    if first > 0:
        if tl.load(ids + first - 1) == id:
            column = tl.arange(0, COLUMNS)
            total = tl.zeros([COLUMNS], tl.float32)
            for entry in range(first, min(first + BLOCK, entries)):
                columns = tl.where(tl.load(ids + entry) == id, dim, 0)
                row = tl.load(order + entry)
                total += tl.load(grads + row * dim + column, mask=column < columns, other=0.0).to(tl.float32)
            tl.store(partials + tl.program_id(0).to(tl.int64) * dim + column, total, mask=column < dim)


@triton.jit
def update_row(
    id,
    g,  # [D], the sum of the row's gradients
    weight,  # [V, D]
    first,  # [V, D] (row-wise Adagrad: [V]) or unused
    second,  # [V, D] or unused
    counts,  # [V] or None
    dim, lr, step, beta1, keep1, keep2, eps, coeff,
    column,
    RULE: tl.constexpr, MAXIMIZE: tl.constexpr, DECOUPLED: tl.constexpr,
):  # fmt: skip
    """Sign and regularizer of g, then the rule; formulas in csrc/include/din_kernels/sparse_update.h."""
    at, inside = id * dim + column, column < dim
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if MAXIMIZE:
        g = -g
    if counts is not None:
        decay = coeff / count_of(counts, id)
        if DECOUPLED:
            w = w - lr * decay * w
        else:
            g = g + decay * w
    if RULE == "sgd":
        delta = g
    elif RULE == "rowwise_adagrad":
        s = tl.load(first + id) + tl.sum(g * g, 0) / dim
        tl.store(first + id, s)
        delta = g / (tl.sqrt(s) + eps)
    else:
        state = tl.load(first + at, mask=inside, other=0.0)
        if RULE == "momentum":
            state = beta1 * state + g
            delta = state
        elif RULE == "nesterov":
            state = beta1 * state + g
            delta = g + beta1 * state
        elif RULE == "adagrad":
            state = state + g * g
            # Columns beyond D would divide 0 by 0 where eps is 0; they are not stored.
            delta = g / (tl.sqrt(state) + eps)
        else:
            tl.static_assert(RULE == "adam")
            state = state + keep1 * (g - state)
            v = tl.load(second + at, mask=inside, other=0.0)
            v = v + keep2 * (g * g - v)
            tl.store(second + at, v, mask=inside)
            delta = state / (tl.sqrt(v) + eps)
        tl.store(first + at, state, mask=inside)
    tl.store(weight + at, narrow(w - step * delta, weight.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["entries", "padding_idx"])
def update_kernel(
    ids,  # [N], sorted
    order,  # [N], where each came from
    grads,  # [N, D]
    partials,  # [blocks, D] fp32, by partial_kernel
    weight, first, second, counts,  # as in update_row
    entries,  # N
    dim,  # D
    padding_idx,
    lr, step, beta1, keep1, keep2, eps, coeff,
    RULE: tl.constexpr, MAXIMIZE: tl.constexpr, DECOUPLED: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Updates the rows whose run of equal ids begins in this program's block of sorted entries."""
    column = tl.arange(0, COLUMNS)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    end = min(start + BLOCK, entries)
    total = tl.zeros([COLUMNS], tl.float32)
    ours = start < 0  # false: whether the current run began in this block
    for entry in range(start, end):
        id = tl.load(ids + entry).to(tl.int64)
        begins = (entry == 0) | (tl.load(ids + max(entry - 1, 0)) != id)
        ours = ours | begins
        row = tl.load(order + entry)
        g = tl.load(grads + row * dim + column, mask=column < dim, other=0.0).to(tl.float32)
        total = tl.where(begins, g, total + g)
        ends = (entry + 1 == entries) | (tl.load(ids + min(entry + 1, entries - 1)) != id)
        if ours & (id != padding_idx) & (ends | (entry + 1 == end)):
            # The run goes on in the blocks that begin with its id; HEADS of them at a time, since one by one each would
            # wait for the memory of the one before.
            block = tl.program_id(0).to(tl.int64) + 1 + tl.arange(0, HEADS)
            goes_on = ends == 0
            while goes_on:
                inside = block * BLOCK < entries
                same = inside & (tl.load(ids + block * BLOCK, mask=inside, other=0) == id)
                held = same[:, None] & (column < dim)[None, :]
                total += tl.sum(tl.load(partials + block[:, None] * dim + column[None, :], mask=held, other=0.0), 0)
                goes_on = tl.min(same.to(tl.int32), 0) > 0
                block += HEADS
            update_row(
                id, total, weight, first, second, counts, dim, lr, step, beta1, keep1, keep2, eps, coeff,
                column, RULE, MAXIMIZE, DECOUPLED,
            )  # fmt: skip


def forward(call) -> None:
    """Kernel calls of the op, one table after the other."""
    for table in call.tables():
        _update(call.rule, *table)


def _update(rule, weight, states, ids, grads, hyper, counts, padding_idx) -> None:
    """Kernel calls for one table; weight `[V, D]` and states are updated in place."""
    entries, dim = grads.shape
    if not entries or not dim:
        return
    grads = grads.contiguous()
    ids, order = torch.sort(ids, stable=True)
    blocks = triton.cdiv(entries, BLOCK)
    partials = torch.empty(blocks, dim, dtype=torch.float32, device=weight.device)
    first, second = [*states, weight, weight][:2]  # where a rule has no such state, a pointer that it does not follow
    shape = {"BLOCK": BLOCK, "COLUMNS": triton.next_power_of_2(dim), "num_warps": 1 if dim <= 128 else 4}
    with on_device_of(weight):
        partial_kernel[(blocks,)](ids, order, grads, partials, entries, dim, **shape)
        update_kernel[(blocks,)](
            ids, order, grads, partials, weight, first, second, counts if hyper.coeff else None, entries, dim,
            padding_idx, hyper.lr, hyper.step, hyper.beta1, 1 - hyper.beta1, 1 - hyper.beta2, hyper.eps, hyper.coeff,
            RULE=rule, MAXIMIZE=bool(hyper.maximize), DECOUPLED=bool(hyper.decoupled),
            HEADS=max(1, min(32, ELEMENTS // shape["COLUMNS"])), **shape,
        )  # fmt: skip
