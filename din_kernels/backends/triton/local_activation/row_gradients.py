"""Gradients of the behaviours, the first of the backward's kernels:

    dk_t = w_t g + A_i^T dz1

It also leaves dz and h of every layer to the kernels of the weights, and makes the activation's sums over all pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.arithmetic import as_columns, dot, high_and_low, multiply_transposed, repeat_rows
from din_kernels.backends.triton.blocks import narrow
from din_kernels.backends.triton.local_activation.descent import descend, normalizer_of, residual_of
from din_kernels.backends.triton.local_activation.tile import (
    Pairs,
    chunk_of,
    keep_weights,
    open_group,
    pairs_of,
    part_of,
    within,
    work_of,
)


@triton.jit
def pooled_part(made, SPAN: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """w_t g in one span of D, [ROWS, WIDTH] fp32; in bf16 a product of w in two parts, as in forward.pool_tile."""
    DTYPE: tl.constexpr = made.g[SPAN].dtype
    PRECISION: tl.constexpr = TILE.precision
    if TILE.group == 1 and DTYPE == tl.bfloat16:
        ROWS: tl.constexpr = TILE.length
        high, low = high_and_low(made.w, DTYPE)
        twice = tl.where(tl.arange(0, 16)[:, None] < 2, made.g[SPAN], tl.zeros_like(made.g[SPAN]))
        return dot(as_columns(high, low), twice, tl.zeros([ROWS, WIDTH], tl.float32), PRECISION)
    else:
        each_g = repeat_rows((made.g[SPAN],), TILE.length)
        return made.w[:, None] * each_g[0].to(tl.float32)


@triton.jit
def through_first(made, kept, a, SPAN: tl.constexpr, UNIT: tl.constexpr, TILE: tl.constexpr):
    """dk in one span of D, [ROWS, width] fp32."""
    WIDTH: tl.constexpr = UNIT.d_spans.width[SPAN]
    ROWS: tl.constexpr = TILE.group * TILE.length
    PRECISION: tl.constexpr = TILE.precision
    start = pooled_part(made, SPAN, WIDTH, TILE)
    dk = multiply_transposed((start,), made.dz, (a[SPAN],), PRECISION)[0]
    if not TILE.folded:
        # Through q k its gradient goes to k by q.
        nothing = (tl.zeros([ROWS, WIDTH], tl.float32),)
        by_product = multiply_transposed(nothing, made.dz, (kept.weight_qk[SPAN],), PRECISION)
        dk += repeat_rows((made.q[SPAN],), TILE.length)[0].to(tl.float32) * by_product[0]
    return dk


@triton.jit
def add_row_gradients(
    grads,  # per table [M, D_k]; fp32 where SHARED
    pairs,
    values,  # [ROWS, width] fp32, of one span of D
    SPAN: tl.constexpr,
    UNIT: tl.constexpr,
    SHARED: tl.constexpr,  # see arguments.Pass
):
    """Stores dk, or adds it where several candidates have the row."""
    pointer = grads[UNIT.history_places.table[SPAN]]
    column = tl.arange(0, UNIT.d_spans.width[SPAN])
    at = pairs.row[:, None] * UNIT.history_places.width[SPAN] + (UNIT.history_places.column[SPAN] + column)[None, :]
    mask = pairs.valid[:, None] & (column < UNIT.d_spans.valid[SPAN])[None, :]
    if SHARED == "atomic":
        tl.atomic_add(pointer + at, values, mask=mask, sem="relaxed")
    elif SHARED == "ordered":
        tl.debug_barrier()  # what other threads of the program stored for the candidate before
        tl.store(pointer + at, tl.load(pointer + at, mask=mask, other=0.0) + values, mask=mask)
    else:
        tl.store(pointer + at, narrow(values, pointer.dtype.element_ty), mask=mask)


@triton.jit
def store_zeros(grads, first, last, UNIT: tl.constexpr, TILE: tl.constexpr):
    """Zeros in rows first .. last, [GROUP] each."""
    ROWS: tl.constexpr = TILE.group * TILE.length
    for t0 in range(0, tl.max(last - first, 0).to(tl.int32), TILE.length):
        row = first[:, None] + (t0 + tl.arange(0, TILE.length))[None, :]
        inside = tl.reshape(row < last[:, None], [ROWS])
        none = Pairs(inside, tl.reshape(row, [ROWS]), inside, inside)
        for b in tl.static_range(len(UNIT.d_spans.width)):
            nothing = tl.zeros([ROWS, tl.constexpr(UNIT.d_spans.width[b])], tl.float32)
            add_row_gradients(grads, none, nothing, b, UNIT, "none")


@triton.jit
def zero_padding(grads, group, where, rows, queries, start, end, UNIT: tl.constexpr, TILE: tl.constexpr):
    """Zeros in the rows that no candidate has, behind each history up to the next one, and before the first.

    Histories that no candidates share stand in the order of the candidates; each gap belongs to the chunk of places in
    which the history before it begins.
    """
    own = group.present & (group.start >= start) & (group.start < end)
    following = group.candidate + 1
    until = tl.load(where.begin + following, mask=group.present & (following < queries), other=0)
    until = tl.where(following < queries, until, rows)
    behind = group.start + group.count
    store_zeros(grads, tl.where(own, behind, 0), tl.where(own, until, 0), UNIT, TILE)
    leads = own & (group.candidate == 0)
    store_zeros(grads, tl.zeros_like(behind), tl.where(leads, group.start, 0), UNIT, TILE)


@triton.jit(do_not_specialize=["rows", "queries", "turn", "first", "last", "splits"])
def row_gradients_kernel(
    inputs,  # arguments.Inputs
    given,  # arguments.Given
    history,  # per table [M, D_k], or none; fp32 where candidates share rows
    room,  # arguments.Room
    parts,  # [programs, sums_size] fp32, zeros: the activation's sums
    order,  # arguments.Order
    rows,  # M
    queries,  # Q
    turn,  # 0 or 1, in turns from chunk to chunk
    first,  # candidates first .. last of Q
    last,
    splits,
    scale,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    PASS: tl.constexpr,
):
    """dk; or with PASS.stop >= 0 the sums of one layer's Dice alone."""
    DTYPE: tl.constexpr = inputs.history.tables[0].dtype.element_ty
    LENGTH: tl.constexpr = TILE.length
    SHARED: tl.constexpr = PASS.shared
    where = inputs.where
    kept = keep_weights(inputs.mlp, UNIT, TILE, UNIT.hidden, DTYPE)
    part = parts + tl.program_id(0).to(tl.int64) * PASS.sums_size
    first, last, start, end = chunk_of(room.chunk, first, last)
    begin, stop, step = work_of(order, first, last, splits, TILE, SHARED)
    for work in range(begin, stop, step):
        number, split = work // splits, work % splits
        if SHARED == "ordered":
            number = tl.load(order.candidates + work)
        whole, a = open_group(tl.cast(number, tl.int32), first, last, inputs, kept, UNIT, TILE, DTYPE)
        normalizer = normalizer_of(given, where, whole, UNIT, TILE, PASS.softmax)
        group = within(whole, start, end)
        residual = residual_of(group, room, turn, PASS)
        t_first, t_last = part_of(group, split, splits, LENGTH)
        for t0 in range(t_first, t_last, LENGTH):
            pairs = pairs_of(group, t0, where, TILE)
            made = descend(
                inputs,
                given,
                kept,
                a,
                whole,
                pairs,
                t0,
                (splits == 1) & (group.count == whole.count),
                normalizer,
                residual,
                scale,
                part,
                room,
                start,
                UNIT,
                TILE,
                PASS,
            )
            residual = made.residual
            if PASS.stop < 0:
                if len(history) > 0:
                    for b in tl.static_range(len(UNIT.d_spans.width)):
                        add_row_gradients(history, pairs, through_first(made, kept, a, b, UNIT, TILE), b, UNIT, SHARED)
        if PASS.softmax and room.residual is not None:
            cut = (group.count < whole.count) & (group.count > group.skip)
            tl.store(room.residual + 1 - turn + group.skip * 0, residual, mask=cut)
        if PASS.stop < 0 and SHARED == "none" and len(history) > 0 and where.row_index is None:
            if split == 0:
                zero_padding(history, whole, where, rows, queries, start, end, UNIT, TILE)
