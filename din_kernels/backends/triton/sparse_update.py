"""`sparse_update` in Triton: ids are sorted once, then one pass sums, regularizes and updates each touched row.

    sorted ids   | 3 3 5 5 5 5 5 5 | 5 5 5 5 5 5 5 5 | 5 7 7 8 9 9 9 9 |     blocks of BLOCK entries, a program each
                   row 3, row 5 ..................... .                     the program in whose block a run begins
                                     partial of 5      partial of 5         updates its row, with partial_kernel's sums
                                                                            of the blocks that begin within the run

Sums run in the order of the sorted ids (the sort is stable) and nothing is added atomically, so results are the same
bit for bit from run to run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from din_kernels.backends import Request
from din_kernels.backends.calls import SparseUpdateCall, Table
from din_kernels.backends.triton import cdiv, next_power_of_2, on_device_of, refuses_tensors
from din_kernels.backends.triton.blocks import narrow
from din_kernels.backends.triton.launch import launch

# A program walks over this many sorted entries, one row [D] at a time. Few, so that many programs wait for memory at
# once: 52,000 ids make 6,500 programs.
BLOCK = 8
ELEMENTS = 1024  # of a tile [HEADS, COLUMNS] of partial sums: 32 per thread of one warp, twice that costs 22 registers


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    if not request.options.get("contiguous", True):
        return "weight and states must be contiguous"
    return refuses_tensors(request)


# --- what kernels take, by name ---------------------------------------------------------------------------------------


class Gradient(NamedTuple):
    """A table's gradient, sorted by id."""

    ids: torch.Tensor  # [N], sorted
    order: torch.Tensor  # [N], where each came from
    grads: torch.Tensor  # [N, D], as they came


class Rows(NamedTuple):
    """What belongs to a table's rows."""

    weight: torch.Tensor  # [V, D]
    first: torch.Tensor  # [V, D] (row-wise Adagrad: [V]) or unused
    second: torch.Tensor  # [V, D] or unused
    counts: torch.Tensor | None  # [V], n_j


class Numbers(NamedTuple):
    """Numbers of the step, all of them float; formulas in csrc/include/din_kernels/sparse_update.h."""

    lr: float
    step: float  # lr with the rule's own corrections
    beta1: float
    keep1: float  # 1 - beta1, made in double
    keep2: float  # 1 - beta2, made in double
    eps: float
    coeff: float


class Step(NamedTuple):
    """Options of the step, known at compile time."""

    rule: str
    maximize: bool
    decoupled: bool


# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def count_of(
    counts,  # [V], n_j
    id,
):
    """n_j as fp32; 0 (never seen in training) counts as 1, this batch."""
    return tl.maximum(tl.load(counts + id).to(tl.float32), 1.0)


@triton.jit(do_not_specialize=["entries"])
def partial_kernel(
    gradient,  # Gradient
    partials,  # [blocks, D] fp32
    entries,  # N
    dim,  # D
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,  # D rounded up to a power of two
):
    """partials[b] = what block b holds of a run of equal ids that began in an earlier block; else not written."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    id = tl.load(gradient.ids + first)
    if first > 0:
        if tl.load(gradient.ids + first - 1) == id:
            column = tl.arange(0, COLUMNS)
            total = tl.zeros([COLUMNS], tl.float32)
            for entry in range(first, min(first + BLOCK, entries)):
                columns = tl.where(tl.load(gradient.ids + entry) == id, dim, 0)
                row = tl.load(gradient.order + entry)
                total += tl.load(gradient.grads + row * dim + column, mask=column < columns, other=0.0).to(tl.float32)
            tl.store(partials + tl.program_id(0).to(tl.int64) * dim + column, total, mask=column < dim)


@triton.jit
def delta_of(g, rows, id, at, inside, dim, numbers, STEP: tl.constexpr):
    """What the row's weight loses, over the step's length; the states are updated."""
    if STEP.rule == "sgd":
        delta = g
    elif STEP.rule == "rowwise_adagrad":
        s = tl.load(rows.first + id) + tl.sum(g * g, 0) / dim
        tl.store(rows.first + id, s)
        delta = g / (tl.sqrt(s) + numbers.eps)
    else:
        state = tl.load(rows.first + at, mask=inside, other=0.0)
        if STEP.rule == "momentum":
            state = numbers.beta1 * state + g
            delta = state
        elif STEP.rule == "nesterov":
            state = numbers.beta1 * state + g
            delta = g + numbers.beta1 * state
        elif STEP.rule == "adagrad":
            state = state + g * g
            # Columns beyond D would divide 0 by 0 where eps is 0; they are not stored.
            delta = g / (tl.sqrt(state) + numbers.eps)
        else:
            tl.static_assert(STEP.rule == "adam")
            state = state + numbers.keep1 * (g - state)
            v = tl.load(rows.second + at, mask=inside, other=0.0)
            v = v + numbers.keep2 * (g * g - v)
            tl.store(rows.second + at, v, mask=inside)
            delta = state / (tl.sqrt(v) + numbers.eps)
        tl.store(rows.first + at, state, mask=inside)
    return delta


@triton.jit
def update_row(
    id,
    g,  # [D], the sum of the row's gradients
    rows,  # Rows
    dim,
    numbers,  # Numbers
    column,
    STEP: tl.constexpr,
):
    """Sign and regularizer of g, then the rule."""
    at, inside = id * dim + column, column < dim
    w = tl.load(rows.weight + at, mask=inside, other=0.0).to(tl.float32)
    if STEP.maximize:
        g = -g
    if rows.counts is not None:
        decay = numbers.coeff / count_of(rows.counts, id)
        if STEP.decoupled:
            w = w - numbers.lr * decay * w
        else:
            g = g + decay * w
    delta = delta_of(g, rows, id, at, inside, dim, numbers, STEP)
    tl.store(rows.weight + at, narrow(w - numbers.step * delta, rows.weight.dtype.element_ty), mask=inside)


@triton.jit
def add_blocks_behind(total, gradient, partials, id, entries, dim, goes_on, BLOCK: tl.constexpr, HEADS: tl.constexpr):
    """total with what the blocks behind this one, which begin with the run's id, hold of the run.

    HEADS of them are read at a time, since one by one each would wait for the memory of the one before.
    """
    column = tl.arange(0, total.shape[0])
    block = tl.program_id(0).to(tl.int64) + 1 + tl.arange(0, HEADS)
    while goes_on:
        inside = block * BLOCK < entries
        same = inside & (tl.load(gradient.ids + block * BLOCK, mask=inside, other=0) == id)
        held = same[:, None] & (column < dim)[None, :]
        total += tl.sum(tl.load(partials + block[:, None] * dim + column[None, :], mask=held, other=0.0), 0)
        goes_on = tl.min(same.to(tl.int32), 0) > 0
        block += HEADS
    return total


@triton.jit(do_not_specialize=["entries", "padding_idx"])
def update_kernel(
    gradient,  # Gradient
    partials,  # [blocks, D] fp32, by partial_kernel
    rows,  # Rows
    entries,  # N
    dim,  # D
    padding_idx,
    numbers,  # Numbers
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Updates the rows whose run of equal ids begins in this program's block of sorted entries."""
    column = tl.arange(0, COLUMNS)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    end = min(start + BLOCK, entries)
    total = tl.zeros([COLUMNS], tl.float32)
    ours = start < 0  # false: whether the current run began in this block
    for entry in range(start, end):
        # One more entry of the current run, or the first of the next.
        id = tl.load(gradient.ids + entry).to(tl.int64)
        begins = (entry == 0) | (tl.load(gradient.ids + max(entry - 1, 0)) != id)
        ours = ours | begins
        row = tl.load(gradient.order + entry)
        g = tl.load(gradient.grads + row * dim + column, mask=column < dim, other=0.0).to(tl.float32)
        total = tl.where(begins, g, total + g)
        # The row is updated where its run ends, or goes on in the blocks behind.
        ends = (entry + 1 == entries) | (tl.load(gradient.ids + min(entry + 1, entries - 1)) != id)
        if ours & (id != padding_idx) & (ends | (entry + 1 == end)):
            total = add_blocks_behind(total, gradient, partials, id, entries, dim, ends == 0, BLOCK, HEADS)
            update_row(id, total, rows, dim, numbers, column, STEP)


def _update_table(table: Table, rule: str) -> None:
    """Kernel calls for one table."""
    weight, hyper = table.weight, table.hyper
    entries, dim = table.grads.shape
    if not entries or not dim:
        return
    ids, order = torch.sort(table.ids, stable=True)
    gradient = Gradient(ids, order, table.grads.contiguous())
    blocks = cdiv(entries, BLOCK)
    partials = torch.empty(blocks, dim, dtype=torch.float32, device=weight.device)
    # Where a rule has no such state, the weight stands for it, a pointer that is not followed.
    first, second = [*table.states, weight, weight][:2]
    rows = Rows(weight, first, second, table.counts if hyper.coeff else None)
    numbers = Numbers(hyper.lr, hyper.step, hyper.beta1, 1 - hyper.beta1, 1 - hyper.beta2, hyper.eps, hyper.coeff)
    step = Step(rule, bool(hyper.maximize), bool(hyper.decoupled))
    shape = {"BLOCK": BLOCK, "COLUMNS": next_power_of_2(dim)}
    constants = {"STEP": step, **shape, "HEADS": max(1, min(32, ELEMENTS // shape["COLUMNS"]))}
    arguments = (gradient, partials, rows, entries, dim, table.padding_idx, numbers)
    options = {"num_warps": 1 if dim <= 128 else 4}
    with on_device_of(weight):
        launch(partial_kernel, (blocks,), (gradient, partials, entries, dim), shape, options)
        launch(update_kernel, (blocks,), arguments, constants, options)


def forward(call: SparseUpdateCall) -> None:
    """Kernel calls of the op: weights and states are updated in place, table by table."""
    for table in call.tables():
        _update_table(table, call.rule)
