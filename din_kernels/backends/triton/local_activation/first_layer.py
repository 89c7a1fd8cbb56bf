"""Gradients of the first layer's weights, and of the query through A:

    dA_i = sum_t dz1 k_t^T    dc_i = sum_t dz1    dWk' += dA_i    dWp' += dA_i diag(q_i)    dq_i = sum_h Wp'[h] dA_i[h]

Histories are folded or grouped as in the forward; grouped, dq_i = sum_t k_t (Wp'^T dz1).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.arithmetic import (
    add_all_rows,
    add_outer,
    add_row_groups,
    multiply_transposed,
)
from din_kernels.backends.triton.blocks import (
    load_matrix,
    load_rows,
    store_matrix,
    store_rows,
    zero_matrix,
    zero_rows,
)
from din_kernels.backends.triton.local_activation.descent import descend, normalizer_of, residual_of
from din_kernels.backends.triton.local_activation.tile import (
    candidates_of,
    chunk_of,
    keep_weights,
    load_source,
    open_group,
    pairs_of,
    part_of,
    times_query,
    within,
)


class WeightGrads(NamedTuple):
    """Transposed gradients that a program keeps over all its tiles, [in width, out width] fp32 per pair of spans."""

    weight_k: tuple  # nothing for outer, as the next
    weight_qk: tuple


class GroupGrads(NamedTuple):
    """Gradients of a group's candidates over its tiles, fp32."""

    query: tuple  # grouped: [GROUP, width] per span of D
    term: tuple  # dc, [GROUP, width] per span of H1; or [16, width], of which the first row alone is not zero
    a: tuple  # folded: dA^T, [in width, out width] per pair


@triton.jit
def resumed_matrix(pointer, resumed, IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr):
    """What this program stored there in the chunk before, where `resumed` is 1, else zeros."""
    out = ()
    for i in tl.static_range(len(IN.width)):
        row = ()
        for o in tl.static_range(len(OUT.width)):
            source, target = tl.arange(0, IN.width[i]), tl.arange(0, OUT.width[o])
            inside = (source < IN.valid[i] * resumed)[:, None] & (target < OUT.valid[o])[None, :]
            at = (OUT.start[o] + target)[None, :] * STRIDE + (IN.start[i] + source)[:, None]
            row = row + (tl.load(pointer + at, mask=inside, other=0.0),)
        out = out + (row,)
    return out


@triton.jit
def add_tile(k, q, dz, kept, weights, own, UNIT: tl.constexpr, TILE: tl.constexpr):
    """WeightGrads and GroupGrads with a tile's."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    LENGTH: tl.constexpr = TILE.length
    ROWS: tl.constexpr = TILE.group * TILE.length
    PRECISION: tl.constexpr = TILE.precision
    term = own.term
    if len(own.term) > 0:
        if own.term[0].shape[0] != TILE.group:
            term = add_all_rows(own.term, dz, PRECISION)
        else:
            wide = ()
            for o in tl.static_range(len(dz)):
                wide = wide + (dz[o].to(tl.float32),)
            term = add_row_groups(own.term, wide, LENGTH)
    if TILE.folded:
        own = GroupGrads(own.query, term, add_outer(own.a, k, dz, PRECISION))
    else:
        weight_k = add_outer(weights.weight_k, k, dz, PRECISION)
        weight_qk = add_outer(weights.weight_qk, times_query(k, q, LENGTH), dz, PRECISION)
        by_product = multiply_transposed(zero_rows(ROWS, D_SPANS), dz, kept.weight_qk, PRECISION)
        through_q = ()
        for b in tl.static_range(len(k)):
            through_q = through_q + (k[b].to(tl.float32) * by_product[b],)
        weights = WeightGrads(weight_k, weight_qk)
        own = GroupGrads(add_row_groups(own.query, through_q, LENGTH), term, own.a)
    return weights, own


@triton.jit
def unfold(weights, own, inputs, group, weight, UNIT: tl.constexpr):
    """WeightGrads with what a folded group's dA gives to Wk' and Wp', and dq; `weight` is Wp'^T."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    QUERY_PLACES: tl.constexpr = UNIT.query_places
    q = load_source(inputs.query, group.candidate, group.active, D_SPANS, QUERY_PLACES)
    weight_k = ()
    weight_qk = ()
    query = ()
    for b in tl.static_range(len(own.a)):
        row_k = ()
        row_qk = ()
        column = tl.trans(q[b]).to(tl.float32)
        along = tl.zeros([tl.constexpr(D_SPANS.width[b])], tl.float32)
        for o in tl.static_range(len(own.a[b])):
            row_k = row_k + (weights.weight_k[b][o] + own.a[b][o],)
            row_qk = row_qk + (weights.weight_qk[b][o] + own.a[b][o] * column,)
            along += tl.sum(own.a[b][o] * weight[b][o].to(tl.float32), 1)
        weight_k, weight_qk = weight_k + (row_k,), weight_qk + (row_qk,)
        query = query + (along[None, :],)
    return WeightGrads(weight_k, weight_qk), query


@triton.jit
def add_rows(pointer, stride, at, inside, before, values, SPANS: tl.constexpr):
    """Stores rows, added to what is there in rows `before`."""
    there = load_rows(pointer, stride, at, inside & before, SPANS)
    total = ()
    for o in tl.static_range(len(values)):
        total = total + (values[o] + there[o],)
    store_rows(pointer, stride, at, inside, total, SPANS)


@triton.jit(do_not_specialize=["queries", "first", "last", "splits", "turn", "resumed"])
def first_layer_kernel(
    inputs,  # arguments.Inputs
    given,  # arguments.Given
    out,  # arguments.FirstGrads
    room,  # arguments.Room
    queries,  # Q
    first,  # candidates first .. last of Q
    last,
    splits,
    turn,  # 0 or 1, in turns from chunk to chunk
    resumed,  # 1 where the program adds to what it stored before, else 0
    scale,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    PASS: tl.constexpr,
    TERM: tl.constexpr,  # whether this launch makes dc
):
    """dWk', dWp' and the part of dq through A, in the columns of UNIT.d_spans; and dc."""
    DTYPE: tl.constexpr = inputs.history.tables[0].dtype.element_ty
    GROUP: tl.constexpr = TILE.group
    LENGTH: tl.constexpr = TILE.length
    D_SPANS: tl.constexpr = UNIT.d_spans
    SPANS: tl.constexpr = UNIT.layers[0]
    QUERY_PLACES: tl.constexpr = UNIT.query_places
    HISTORY_PLACES: tl.constexpr = UNIT.history_places
    KNOWN: tl.constexpr = room.layers is not None
    PLACES: tl.constexpr = UNIT.places
    WIDTH: tl.constexpr = UNIT.widths[0]
    SIZE: tl.constexpr = WIDTH * UNIT.dim
    TERM_ROWS: tl.constexpr = 16 if (GROUP == 1 and DTYPE != tl.float32) else GROUP
    UP_TO: tl.constexpr = 0 if KNOWN else UNIT.hidden
    where = inputs.where
    kept = keep_weights(inputs.mlp, UNIT, TILE, UP_TO, DTYPE)
    part = out.parts + tl.program_id(0).to(tl.int64) * 2 * SIZE
    weights = WeightGrads((), ())
    if inputs.folded is None:
        weights = WeightGrads(
            resumed_matrix(part, resumed, D_SPANS, SPANS, UNIT.dim),
            resumed_matrix(part + SIZE, resumed, D_SPANS, SPANS, UNIT.dim),
        )
        weight_qk = load_matrix(inputs.mlp.matrices + PLACES.weight_qk, PLACES.strides[0], D_SPANS, SPANS, DTYPE)
    first, last, start, end = chunk_of(room.chunk, first, last)
    for work in range(tl.program_id(0), tl.cdiv(last - first, GROUP) * splits, tl.num_programs(0)):
        number, split = work // splits, work % splits
        if KNOWN:
            whole = candidates_of(tl.cast(number, tl.int32), first, last, where, GROUP)
        else:
            whole, a = open_group(tl.cast(number, tl.int32), first, last, inputs, kept, UNIT, TILE, DTYPE)
            normalizer = normalizer_of(given, where, whole, UNIT, TILE, PASS.softmax)
        group = within(whole, start, end)
        nothing = ()
        if TILE.folded:
            nothing = zero_matrix(D_SPANS, SPANS)
        no_term = ()
        if TERM:
            no_term = zero_rows(TERM_ROWS, SPANS)
        own = GroupGrads(zero_rows(GROUP, D_SPANS), no_term, nothing)
        residual = residual_of(group, room, turn, PASS)
        t_first, t_last = part_of(group, split, splits, LENGTH)
        for t0 in range(t_first, t_last, LENGTH):
            pairs = pairs_of(group, t0, where, TILE)
            if KNOWN:
                k = load_source(inputs.history, pairs.row, pairs.valid, D_SPANS, HISTORY_PLACES)
                q = ()
                if not TILE.folded:
                    q = load_source(inputs.query, whole.candidate, whole.active, D_SPANS, QUERY_PLACES)
                slot = pairs.place - start
                dz = load_rows(room.layers + PASS.room.dz[0], PASS.room.stride, slot, pairs.valid, SPANS)
            else:
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
                k, q, dz = made.k, made.q, made.dz
            weights, own = add_tile(k, q, dz, kept, weights, own, UNIT, TILE)
        # The group's gradients, added to those of the chunk before where its history began there.
        at = tl.cast(split, tl.int64) * queries + whole.candidate
        before = group.skip > 0
        query = own.query
        if inputs.folded is not None:
            to = out.folded + tl.cast(number, tl.int64) * SIZE
            store_matrix(to, UNIT.dim, own.a, D_SPANS, SPANS)
        elif TILE.folded:
            weights, query = unfold(weights, own, inputs, whole, weight_qk, UNIT)
        add_rows(out.query, UNIT.dim, at, whole.present, before, query, D_SPANS)
        if TERM:
            of = at
            present, again = whole.present, before
            if TERM_ROWS != GROUP:
                # Of 16 rows that add up to one the first alone is not zero.
                row = tl.arange(0, TERM_ROWS)
                of = tl.broadcast_to(at, [TERM_ROWS])
                present = tl.broadcast_to(present, [TERM_ROWS]) & (row == 0)
                again = tl.broadcast_to(again, [TERM_ROWS])
            add_rows(out.term, WIDTH, of, present, again, own.term, SPANS)
    if inputs.folded is None:
        store_matrix(part, UNIT.dim, weights.weight_k, D_SPANS, SPANS)
        store_matrix(part + SIZE, UNIT.dim, weights.weight_qk, D_SPANS, SPANS)
