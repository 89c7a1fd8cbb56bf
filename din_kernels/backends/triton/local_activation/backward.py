"""Backward kernel of the unit: recomputes the forward tile by tile and keeps weight gradients in its program.

With g = dL/do_i, gw the gradient of the returned weights, dw_t = <g, k_t> + gw_t:

    ds  = scale dw_t  (none),   scale w_t (dw_t - sum_r w_r dw_r)  (softmax; sum_r w_r dw_r = <g, o_i> + sum_r w_r gw_r)
    dk_t = w_t g + A_i^T dz1    dA_i = sum_t dz1 k_t^T    dc_i = sum_t dz1     with dz1 by layer_gradients.py
    dWk' += dA    dWp += dA diag(q)    dq = sum_h Wp[h] dA[h]  and, outside, (Wq + Wd)^T dc
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.arithmetic import dot_rows, repeat_rows, repeat_vector
from din_kernels.backends.triton.blocks import (
    load_block,
    load_rows,
    narrow,
    static,
    store_matrix,
    store_rows,
    unseen_zero,
)
from din_kernels.backends.triton.local_activation.layer_gradients import (
    GroupGrads,
    WeightGrads,
    through_first,
    through_layers,
    zero_group_grads,
    zero_weight_grads,
)
from din_kernels.backends.triton.local_activation.tile import (
    keep_weights,
    layers_of,
    load_last,
    load_source,
    open_group,
    pairs_of,
    part_of,
    score_of,
)

# --- the scores -------------------------------------------------------------------------------------------------------


class Normalizer(NamedTuple):
    """What the softmax of a group's candidates takes beside a tile, [GROUP] fp32; zeros without softmax."""

    shift: tl.tensor  # logsumexp
    delta: tl.tensor  # sum_r w_r dw_r


@triton.jit
def load_pairs(pointer, pair_begin, group, t0, inside, TILE: tl.constexpr):
    """Entries of pairs t0 .. t0 + LENGTH of each candidate, [ROWS] fp32."""
    first = tl.load(pair_begin + group.candidate, mask=group.active, other=0)
    at = first[:, None] + (t0 + tl.arange(0, TILE.length))[None, :]
    return tl.load(pointer + tl.reshape(at, [TILE.group * TILE.length]), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def normalizer_of(given, where, group, UNIT: tl.constexpr, TILE: tl.constexpr, SOFTMAX: tl.constexpr):
    """The Normalizer of a group; with gradients of the weights it takes a pass over the returned weights."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    GROUP: tl.constexpr = TILE.group
    shift, delta = tl.zeros([GROUP], tl.float32), tl.zeros([GROUP], tl.float32)
    if SOFTMAX:
        shift = tl.load(given.logsumexp + group.candidate, mask=group.active, other=0.0).to(tl.float32)
        g = load_rows(given.grad_pooled, UNIT.dim, group.candidate, group.active, D_SPANS)
        delta = dot_rows(g, load_rows(given.pooled, UNIT.dim, group.candidate, group.active, D_SPANS), GROUP)
        if given.grad_pair_weights is not None:
            for t0 in range(0, tl.max(group.count, 0), TILE.length):
                attended = pairs_of(group, t0, where, TILE).attended
                w = load_pairs(given.pair_weights, given.pair_begin, group, t0, attended, TILE)
                gw = load_pairs(given.grad_pair_weights, given.pair_begin, group, t0, attended, TILE)
                delta += tl.sum(tl.reshape(w * gw, [GROUP, TILE.length]), 1)
    return Normalizer(shift, delta)


@triton.jit
def without_residual(
    ds,  # [ROWS]: w (dw - mean)
    w,  # [ROWS]
    attended,  # [ROWS]
    residual,  # [GROUP]: sum of ds over the tiles before
    ends,  # [GROUP]: whether the candidate's history ends in this tile, none of it in another program
    TILE: tl.constexpr,
):
    """ds, and the residual with this tile's.

    Over a whole history sum_r w_r (dw_r - mean) would be 0 if pooled, of which the mean is made, were exact. The last
    tile takes what it is, in proportion to w, since gradients of the last layer are sums over terms that cancel.
    """
    tile = tl.reshape(tl.where(attended, ds, 0.0), [TILE.group, TILE.length])
    weight = tl.reshape(tl.where(attended, w, 0.0), [TILE.group, TILE.length])
    residual += tl.sum(tile, 1)
    total = tl.sum(weight, 1)
    takes = ends & (total > 0)
    share = tl.where(takes, residual / tl.where(takes, total, 1.0), 0.0)
    return tl.reshape(tile - weight * share[:, None], [TILE.group * TILE.length]), residual


# --- gradients of the behaviours --------------------------------------------------------------------------------------


@triton.jit
def add_row_gradients(
    grads,  # per table [M, D_k]; fp32 where SHARED
    pairs,
    values,  # [ROWS, width] fp32 per span of D
    UNIT: tl.constexpr,
    SHARED: tl.constexpr,  # see arguments.Pass
):
    """Stores dk, or adds it where several candidates have the row."""
    if SHARED == "ordered":
        tl.debug_barrier()  # what other threads of the program stored for the candidate before
    for b in tl.static_range(len(values)):
        pointer = grads[UNIT.history_places.table[b]]
        column = tl.arange(0, UNIT.d_spans.width[b])
        at = pairs.row[:, None] * UNIT.history_places.width[b] + (UNIT.history_places.column[b] + column)[None, :]
        mask = pairs.valid[:, None] & (column < UNIT.d_spans.valid[b])[None, :]
        if SHARED == "atomic":
            tl.atomic_add(pointer + at, values[b], mask=mask, sem="relaxed")
        elif SHARED == "ordered":
            tl.store(pointer + at, tl.load(pointer + at, mask=mask, other=0.0) + values[b], mask=mask)
        else:
            tl.store(pointer + at, narrow(values[b], pointer.dtype.element_ty), mask=mask)


# --- the end of a group, and of a program -----------------------------------------------------------------------------


@triton.jit
def unfold(grads, own, inputs, group, zero, UNIT: tl.constexpr, DTYPE: tl.constexpr):
    """WeightGrads and GroupGrads with what a folded group's dA gives to Wk', Wp and q."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    SPANS: tl.constexpr = UNIT.layers[0]
    PLACES: tl.constexpr = UNIT.query_places
    q = load_source(inputs.query, group.candidate, group.active, D_SPANS, PLACES)
    weight_k = ()
    weight_qk = ()
    query = ()
    for b in tl.static_range(len(own.a)):
        row_k = ()
        row_qk = ()
        column = tl.trans(q[b]).to(tl.float32)
        along = tl.zeros([tl.constexpr(D_SPANS.width[b])], tl.float32)
        for o in tl.static_range(len(own.a[b])):
            row_k = row_k + (grads.weight_k[b][o] + own.a[b][o],)
            row_qk = row_qk + (grads.weight_qk[b][o] + own.a[b][o] * column,)
            weight = load_block(inputs.mlp.weight_qk, UNIT.stride_qk, zero, D_SPANS, b, SPANS, o)
            along += tl.sum(own.a[b][o] * narrow(weight, DTYPE).to(tl.float32), 1)
        weight_k, weight_qk = weight_k + (row_k,), weight_qk + (row_qk,)
        query = query + (along[None, :],)
    weights = WeightGrads(weight_k, weight_qk, grads.layers, grads.bias_last)
    return weights, GroupGrads(query, own.term, own.a, own.residual)


@triton.jit
def store_weight_grads(grads, part, mlp, UNIT: tl.constexpr, PASS: tl.constexpr):
    """What a program kept, into its part."""
    HIDDEN: tl.constexpr = UNIT.hidden
    for layer in tl.static_range(1, HIDDEN):
        store_matrix(
            part + PASS.parts.layers[layer].weight,
            UNIT.widths[layer - 1],
            grads.layers[HIDDEN - 1 - layer],
            static(UNIT.layers[layer - 1]),
            static(UNIT.layers[layer]),
        )
    if mlp.weight_k is not None:
        D_SPANS: tl.constexpr = UNIT.d_spans
        SPANS: tl.constexpr = UNIT.layers[0]
        store_matrix(part + PASS.parts.weight_k, UNIT.dim, grads.weight_k, D_SPANS, SPANS)
        store_matrix(part + PASS.parts.weight_qk, UNIT.dim, grads.weight_qk, D_SPANS, SPANS)
    if HIDDEN > 0:
        tl.store(part + PASS.parts.bias_last, grads.bias_last)


@triton.jit
def close_group(out, grads, own, inputs, group, at, number, UNIT: tl.constexpr, TILE: tl.constexpr):
    """Stores a group's gradients at entries `at` of the queries; WeightGrads with what its dA gives to them."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    SPANS: tl.constexpr = UNIT.layers[0]
    if inputs.folded is not None:
        to = out.folded + tl.cast(number, tl.int64) * UNIT.widths[0] * UNIT.dim
        store_matrix(to, UNIT.dim, own.a, D_SPANS, SPANS)
    elif TILE.folded:
        DTYPE: tl.constexpr = inputs.history.tables[0].dtype.element_ty
        grads, own = unfold(grads, own, inputs, group, unseen_zero(number), UNIT, DTYPE)
    store_rows(out.query, UNIT.dim, at, group.present, own.query, D_SPANS)
    store_rows(out.term, UNIT.widths[0], at, group.present, own.term, SPANS)
    return grads


# --- the kernel -------------------------------------------------------------------------------------------------------


@triton.jit
def work_of(order, first, last, splits, TILE: tl.constexpr, PASS: tl.constexpr):
    """begin, end and step of this program's work: all programs in turns, or in order the users of this one."""
    begin, end, step = tl.program_id(0), tl.cdiv(last - first, TILE.group) * splits, tl.num_programs(0)
    if PASS.shared == "ordered":
        begin = tl.load(order.bounds + tl.program_id(0)).to(tl.int32)
        end, step = tl.load(order.bounds + tl.program_id(0) + 1).to(tl.int32), tl.num_programs(0) * 0 + 1
    return begin, end, step


@triton.jit(do_not_specialize=["queries", "first", "last", "splits"])
def backward_kernel(
    inputs,  # arguments.Inputs
    given,  # arguments.Given
    out,  # arguments.Grads
    order,  # arguments.Order
    queries,  # Q
    first,  # candidates first .. last of Q
    last,
    splits,
    scale,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    PASS: tl.constexpr,
):
    """All gradients, or with PASS.stop >= 0 the sums of one layer's Dice alone."""
    DTYPE: tl.constexpr = inputs.history.tables[0].dtype.element_ty
    ROWS: tl.constexpr = TILE.group * TILE.length
    LENGTH: tl.constexpr = TILE.length
    HIDDEN: tl.constexpr = UNIT.hidden
    D_SPANS: tl.constexpr = UNIT.d_spans
    SHARED: tl.constexpr = PASS.shared
    where, mlp = inputs.where, inputs.mlp
    # Weights and their gradients stay in the program.
    kept = keep_weights(mlp, UNIT, TILE, HIDDEN, DTYPE)
    bias_last = tl.load(mlp.biases[HIDDEN]).to(tl.float32)
    grads = zero_weight_grads(mlp, UNIT)
    part = out.parts + tl.program_id(0).to(tl.int64) * PASS.parts.size
    begin, end, step = work_of(order, first, last, splits, TILE, PASS)
    for work in range(begin, end, step):
        number, split = work // splits, work % splits
        if SHARED == "ordered":
            number = tl.load(order.candidates + work)
        group, a = open_group(tl.cast(number, tl.int32), first, last, inputs, kept, UNIT, TILE, DTYPE)
        normalizer = normalizer_of(given, where, group, UNIT, TILE, PASS.softmax)
        own = zero_group_grads(UNIT, TILE)
        t_first, t_last = part_of(group.count, split, splits, LENGTH)
        for t0 in range(t_first, t_last, LENGTH):
            # The forward once more.
            pairs = pairs_of(group, t0, where, TILE)
            zero = unseen_zero(t0)
            values = layers_of(inputs, kept, a, group, pairs.row, pairs.valid, zero, UNIT, TILE, HIDDEN)
            w = scale * score_of(values, load_last(mlp, zero, UNIT), bias_last, ROWS, HIDDEN)
            # ds, through the weighted sum and the softmax.
            g = load_rows(given.grad_pooled, UNIT.dim, group.candidate + zero, group.active, D_SPANS)
            each_g = repeat_rows(g, LENGTH)
            dw = dot_rows(each_g, values.k, ROWS)
            if given.grad_pair_weights is not None:
                dw += load_pairs(given.grad_pair_weights, given.pair_begin, group, t0, pairs.attended, TILE)
            if PASS.softmax:
                w = tl.exp(w - repeat_vector(normalizer.shift, LENGTH))
                ends = (t0 + LENGTH >= group.count) & (splits == 1)
                dw = w * (dw - repeat_vector(normalizer.delta, LENGTH))
                dw, residual = without_residual(dw, w, pairs.attended, own.residual, ends, TILE)
                own = GroupGrads(own.query, own.term, own.a, residual)
            ds = tl.where(pairs.attended, scale * dw, 0.0)
            # Down the layers.
            dz, layers = through_layers(
                ds, values, kept, mlp, pairs.valid, zero, grads.layers, part, UNIT, TILE, PASS, DTYPE
            )
            if PASS.stop < 0:
                grads = WeightGrads(grads.weight_k, grads.weight_qk, layers, grads.bias_last + tl.sum(ds, 0))
                dk, grads, own = through_first(dz, values, kept, a, grads, own, UNIT, TILE, DTYPE)
                # The behaviours take the part through the scores and that through the weighted sum.
                if len(out.history) > 0:
                    both = ()
                    for b in tl.static_range(len(dk)):
                        pooled_part = w[:, None] * each_g[b].to(tl.float32)
                        both = both + (dk[b] + tl.where(pairs.attended[:, None], pooled_part, 0.0),)
                    add_row_gradients(out.history, pairs, both, UNIT, SHARED)
        if PASS.stop < 0:
            at = tl.cast(split, tl.int64) * queries + group.candidate
            grads = close_group(out, grads, own, inputs, group, at, number, UNIT, TILE)
    if PASS.stop < 0:
        store_weight_grads(grads, part, mlp, UNIT, PASS)
