"""Forward kernels of the unit."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.arithmetic import add_row_groups, add_weighted_rows, dot
from din_kernels.backends.triton.blocks import load_block, load_vectors, narrow, store_rows, unseen_zero, zero_rows
from din_kernels.backends.triton.local_activation.tile import (
    candidates_of,
    keep_weights,
    layers_of,
    load_last,
    load_source,
    open_group,
    pairs_of,
    part_of,
    score_of,
)


@triton.jit(do_not_specialize=["queries"])
def term_kernel(
    query,  # arguments.Source
    matrices,  # of arguments.Layers, as the next
    vectors,
    term,  # [Q, H1] fp32
    queries,  # Q
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """c_i = Wq' q_i + b1'."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    SPANS: tl.constexpr = UNIT.layers[0]
    QUERY_PLACES: tl.constexpr = UNIT.query_places
    PLACES: tl.constexpr = UNIT.places
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    q = load_source(query, row, row < queries, D_SPANS, QUERY_PLACES)
    bias = load_vectors(vectors + PLACES.biases[0], 0, SPANS, 1, 0.0)
    total = ()
    for o in tl.static_range(len(SPANS.width)):
        sums = tl.broadcast_to(bias[o][None, :], [BLOCK, tl.constexpr(SPANS.width[o])])
        # Block by block: the whole weight, in fp32 at D = 256, is more than a chip's 99 KB of shared memory.
        for i in tl.static_range(len(q)):
            weight = load_block(matrices + PLACES.weight_q, PLACES.strides[0], 0, D_SPANS, i, SPANS, o)
            sums = dot(q[i], weight, sums, PRECISION)
        total = total + (sums,)
    store_rows(term, UNIT.widths[0], row, row < queries, total, SPANS)


# --- forward ----------------------------------------------------------------------------------------------------------


class Pooled(NamedTuple):
    """A group's sums over the tiles so far."""

    rows: tuple  # sum of w k per span of D, fp32, see pool_tile; under softmax relative to the highest score
    highest: tl.tensor  # softmax: highest score, [GROUP] fp32
    sums: tl.tensor  # softmax: sum of exp(score - highest), [GROUP] fp32


@triton.jit
def pool_tile(pooled, score, k, attended, TILE: tl.constexpr, SOFTMAX: tl.constexpr):
    """`pooled` with a tile's pairs. Under softmax what came before shrinks where the tile has a higher score.

    Where `pooled` has 16 rows and not one a candidate, sums are products of [16, ROWS] with [ROWS, D], w in two parts:
    in bf16 alone, where a part has fp32's range, and with one candidate in a tile, since another's NaN would reach it.
    """
    ROWS: tl.constexpr = TILE.group * TILE.length
    rows, highest, sums = pooled.rows, pooled.highest, pooled.sums
    if SOFTMAX:
        tile = tl.reshape(tl.where(attended, score, float("-inf")), [TILE.group, TILE.length])
        higher = tl.maximum(highest, tl.max(tile, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp(highest - shift)
        p = tl.exp(tile - shift[:, None])
        sums = sums * shrink + tl.sum(p, 1)
        highest = higher
        w = tl.reshape(p, [ROWS])
        shrunk = ()
        for b in tl.static_range(len(rows)):
            shrunk = shrunk + (rows[b] * shrink[:, None],)
        rows = shrunk
    else:
        w = tl.where(attended, score, 0.0)
    if rows[0].shape[0] != TILE.group:
        PRECISION: tl.constexpr = TILE.precision
        rows = add_weighted_rows(rows, w, k, PRECISION)
    else:
        weighted = ()
        for b in tl.static_range(len(k)):
            weighted = weighted + (w[:, None] * k[b].to(tl.float32),)
        rows = add_row_groups(rows, weighted, TILE.length)
    return Pooled(rows, highest, sums)


@triton.jit
def close_group(results, pooled, group, split, queries, UNIT: tl.constexpr, SOFTMAX: tl.constexpr, SPLIT: tl.constexpr):
    """Stores a group's results; where histories are split, its part, which combine_kernel adds to the others."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    GROUP: tl.constexpr = pooled.sums.shape[0]
    rows = ()
    for b in tl.static_range(len(pooled.rows)):
        sums = pooled.rows[b]
        if sums.shape[0] != GROUP:
            sums = tl.sum(sums, 0)[None, :]
        rows = rows + (sums,)
    if SOFTMAX:
        if SPLIT:
            at = split * queries + group.candidate
            tl.store(results.top + at, pooled.highest, mask=group.present)
            tl.store(results.total + at, pooled.sums, mask=group.present)
        else:
            # An empty history has the sum 0 and pools to exactly 0.
            nonempty = tl.where(pooled.sums == 0.0, 1.0, pooled.sums)
            tl.store(results.total + group.candidate, pooled.highest + tl.log(nonempty), mask=group.present)
            scaled = ()
            for b in tl.static_range(len(rows)):
                scaled = scaled + (rows[b] / nonempty[:, None],)
            rows = scaled
    if SPLIT:
        at = tl.cast(split, tl.int64) * queries + group.candidate
        store_rows(results.pooled, UNIT.dim, at, group.present, rows, D_SPANS)
    else:
        store_rows(results.pooled, UNIT.dim, group.candidate, group.present, rows, D_SPANS)


@triton.jit(do_not_specialize=["queries", "first", "last", "splits"])
def forward_kernel(
    inputs,  # arguments.Inputs
    results,  # arguments.Results
    queries,  # Q
    first,  # candidates first .. last of Q
    last,
    splits,
    scale,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    SOFTMAX: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """pooled_i = sum_t w_it k_t, in one pass over each history."""
    DTYPE: tl.constexpr = inputs.history.tables[0].dtype.element_ty
    GROUP: tl.constexpr = TILE.group
    ROWS: tl.constexpr = TILE.group * TILE.length
    HIDDEN: tl.constexpr = UNIT.hidden
    D_SPANS: tl.constexpr = UNIT.d_spans
    NOTHING: tl.constexpr = float("-inf") if SOFTMAX else 0.0  # score of a pair that is not attended
    kept = keep_weights(inputs.mlp, UNIT, TILE, HIDDEN, DTYPE)
    bias_last = tl.load(inputs.mlp.vectors + UNIT.places.bias_last)
    SUM_ROWS: tl.constexpr = 16 if (GROUP == 1 and DTYPE == tl.bfloat16) else GROUP
    for work in range(tl.program_id(0), tl.cdiv(last - first, GROUP) * splits, tl.num_programs(0)):
        number, split = work // splits, work % splits
        group, a = open_group(tl.cast(number, tl.int32), first, last, inputs, kept, UNIT, TILE, DTYPE)
        highest = tl.full([GROUP], float("-inf"), tl.float32)
        pooled = Pooled(zero_rows(SUM_ROWS, D_SPANS), highest, tl.zeros([GROUP], tl.float32))
        t_first, t_last = part_of(group, split, splits, TILE.length)
        for t0 in range(t_first, t_last, TILE.length):
            # Scores of the tile's pairs.
            pairs = pairs_of(group, t0, inputs.where, TILE)
            zero = unseen_zero(t0)
            values = layers_of(inputs, kept, a, group, pairs.row, pairs.attended, zero, UNIT, TILE, HIDDEN)
            score = scale * score_of(values, load_last(inputs.mlp, zero, UNIT), bias_last, ROWS, HIDDEN)
            # The weights, or under softmax the scores, that normalize_kernel makes weights of.
            if results.pair_begin is not None:
                to = tl.load(results.pair_begin + group.candidate, mask=group.present, other=0)
                at = tl.reshape(to[:, None] + (t0 + tl.arange(0, TILE.length))[None, :], [ROWS])
                tl.store(results.pair_weights + at, tl.where(pairs.attended, score, NOTHING), mask=pairs.valid)
            # The weighted sum.
            pooled = pool_tile(pooled, score, values.k, pairs.attended, TILE, SOFTMAX)
        close_group(results, pooled, group, split, queries, UNIT, SOFTMAX, SPLIT)


# --- behind it --------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["queries", "splits"])
def combine_kernel(
    parts,  # [splits, Q, D] fp32
    top,  # [splits, Q] fp32, softmax only, as the next
    total,
    pooled,  # [Q, D]
    logsumexp,  # [Q] float64, softmax only
    queries,  # Q
    dim,  # D
    splits,
    SOFTMAX: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Adds the parts of one candidate in their order."""
    candidate = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    out = tl.zeros([COLUMNS], tl.float32)
    highest = tl.full([], float("-inf"), tl.float32)
    sums = tl.zeros([], tl.float32)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * queries + candidate
        part = tl.load(parts + at * dim + column, mask=column < dim, other=0.0)
        if SOFTMAX:
            other = tl.load(top + at)
            higher = tl.maximum(highest, other)
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            shrink, grow = tl.exp(highest - shift), tl.exp(other - shift)
            sums = sums * shrink + tl.load(total + at) * grow
            out = out * shrink + part * grow
            highest = higher
        else:
            out += part
    if SOFTMAX:
        nonempty = tl.where(sums == 0.0, 1.0, sums)
        tl.store(logsumexp + candidate, highest + tl.log(nonempty))
        out = out / nonempty
    tl.store(pooled + candidate * dim + column, narrow(out, pooled.dtype.element_ty), mask=column < dim)


@triton.jit(do_not_specialize=["queries"])
def normalize_kernel(
    where,  # arguments.Where
    pair_begin,  # [Q]
    logsumexp,  # [Q] float64
    pair_weights,  # [total_pairs] fp32: scores, then weights
    queries,  # Q
    BLOCK: tl.constexpr,
):
    """w = exp(score - logsumexp) for one candidate's pairs."""
    group = candidates_of(tl.program_id(0), 0, queries, where, 1)
    to = tl.load(pair_begin + group.candidate)
    shift = tl.load(logsumexp + group.candidate).to(tl.float32)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    for t0 in range(0, tl.max(group.count, 0), BLOCK):
        t = t0 + tl.arange(0, BLOCK)
        inside = t[None, :] < group.count[:, None]
        score = tl.load(pair_weights + to[:, None] + t[None, :], mask=inside, other=0.0)
        tl.store(pair_weights + to[:, None] + t[None, :], tl.exp(score - shift[:, None]), mask=inside)
