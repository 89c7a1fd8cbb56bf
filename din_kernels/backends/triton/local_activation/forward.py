"""Forward kernels of the unit."""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.blocks import (
    add_column_sums,
    add_row_groups,
    dot,
    load_block,
    narrow,
    select_rows,
    static,
    store_rows,
    store_vectors,
    unseen_zero,
    zero_rows,
    zero_vectors,
)
from din_kernels.backends.triton.local_activation.tile import (
    candidates_of,
    layers_of,
    load_first,
    load_last,
    load_matrices,
    load_source,
    open_group,
    pairs_of,
    part_of,
    score_of,
)


@triton.jit(do_not_specialize=["queries"])
def term_kernel(
    tables, ids,  # of the query
    weight,  # [H1, STRIDE]: Wq, for concat Wq + Wd
    bias,  # [H1]
    term,  # [Q, H1] fp32
    queries,  # Q
    BLOCK: tl.constexpr,
    D_SPANS: tl.constexpr, SOURCES: tl.constexpr, SPANS: tl.constexpr, WIDTH: tl.constexpr,
    STRIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """c_i = (Wq + Wd) q_i + b1, Wd only for concat."""
    DTYPE: tl.constexpr = tables[0].dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    q = load_source(tables, ids, row, row < queries, D_SPANS, SOURCES)
    total = ()
    for o in tl.static_range(len(SPANS) // 3):
        column = tl.arange(0, SPANS[3 * o + 1])
        start = tl.load(bias + SPANS[3 * o] + column, mask=column < SPANS[3 * o + 2], other=0.0).to(tl.float32)
        sums = tl.broadcast_to(start[None, :], [BLOCK, tl.constexpr(SPANS[3 * o + 1])])
        # Block by block: the whole of the weight, in fp32 at D = 256, is more than a chip's 99 KB of shared memory.
        for i in tl.static_range(len(q)):
            sums = dot(q[i], narrow(load_block(weight, STRIDE, 0, D_SPANS, i, SPANS, o), DTYPE), sums, PRECISION)
        total = total + (sums,)
    store_rows(term, WIDTH, row, row < queries, total, SPANS)


@triton.jit(do_not_specialize=["queries", "first", "last", "splits"])
def forward_kernel(
    source,  # (query_tables, query_ids, row_tables, row_ids)
    where,  # see candidates_of
    mlp,  # (weights, biases, params), one entry per layer each, and first: (Wk', Wp), none for outer
    term,  # [Q, H1] fp32, c_i
    folded,  # outer: A [last - first, H1, D]; else None
    pooled,  # [Q, D], or parts [splits, Q, D] fp32
    top, total,  # softmax, SPLIT: maximum and sum of exp(score - maximum), [splits, Q] fp32; else total: logsumexp [Q]
    pair_begin,  # [Q] or None
    pair_weights,  # [total_pairs] fp32; softmax: scores yet
    queries, first, last,  # candidates first .. last of Q
    splits,
    scale,
    D_SPANS: tl.constexpr, Q_SOURCES: tl.constexpr, K_SOURCES: tl.constexpr, DIM: tl.constexpr,
    LAYERS: tl.constexpr, WIDTHS: tl.constexpr, STEPS: tl.constexpr, HIDDEN: tl.constexpr,
    STRIDES: tl.constexpr, ACTIVATION: tl.constexpr, SOFTMAX: tl.constexpr,
    GROUP: tl.constexpr, LENGTH: tl.constexpr, FOLD: tl.constexpr, SPLIT: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """pooled_i = sum_t w_it k_t, in one pass over each history; a persistent program keeps the weights."""
    DTYPE: tl.constexpr = source[2][0].dtype.element_ty
    ROWS: tl.constexpr = GROUP * LENGTH
    NOTHING: tl.constexpr = float("-inf") if SOFTMAX else 0.0  # score of a pair that does not count
    key = ()
    product = ()
    if not FOLD:
        key, product = load_first(mlp[3], D_SPANS, static(LAYERS[0]), STRIDES, DTYPE)
    matrices = load_matrices(mlp[0], LAYERS, WIDTHS, HIDDEN, DTYPE)
    b_last = tl.load(mlp[1][HIDDEN]).to(tl.float32)
    for work in range(tl.program_id(0), tl.cdiv(last - first, GROUP) * splits, tl.num_programs(0)):
        group, split = work // splits, work % splits
        candidate, present, start, count, a = open_group(
            tl.cast(group, tl.int32), first, last, source, where, folded, mlp[3], key,
            D_SPANS, Q_SOURCES, DIM, static(LAYERS[0]), WIDTHS[0], STRIDES, GROUP, FOLD, DTYPE,
        )  # fmt: skip
        out = zero_rows(GROUP, D_SPANS)
        highest = tl.full([GROUP], float("-inf"), tl.float32)
        sums = tl.zeros([GROUP], tl.float32)
        t_first, t_last = part_of(count, split, splits, LENGTH)
        for t0 in range(t_first, t_last, LENGTH):
            row, valid, counts = pairs_of(start, count, t0, where, GROUP, LENGTH)
            zero = unseen_zero(t0)
            k, _, zs, hs, _ = layers_of(
                row, counts, candidate, present & (count > 0), source, mlp, term, a, product, matrices, zero,
                D_SPANS, Q_SOURCES, K_SOURCES, LAYERS, WIDTHS, STEPS, HIDDEN, ACTIVATION, LENGTH, FOLD, PRECISION, FAST,
            )  # fmt: skip
            w_last = load_last(mlp[0], zero, LAYERS, HIDDEN)
            score = scale * score_of(zs, hs, w_last, b_last, ROWS, HIDDEN)
            if pair_begin is not None:
                to = tl.load(pair_begin + candidate, mask=present, other=0)
                at = to[:, None] + (t0 + tl.arange(0, LENGTH))[None, :]
                tl.store(pair_weights + tl.reshape(at, [ROWS]), tl.where(counts, score, NOTHING), mask=valid)
            if SOFTMAX:
                tile = tl.reshape(tl.where(counts, score, float("-inf")), [GROUP, LENGTH])
                higher = tl.maximum(highest, tl.max(tile, 1))
                shift = tl.where(higher == float("-inf"), 0.0, higher)
                shrink = tl.exp(highest - shift)
                p = tl.exp(tile - shift[:, None])
                sums = sums * shrink + tl.sum(p, 1)
                highest = higher
                w = tl.reshape(p, [ROWS])
                shrunk = ()
                for b in tl.static_range(len(out)):
                    shrunk = shrunk + (out[b] * shrink[:, None],)
                out = shrunk
            else:
                w = tl.where(counts, score, 0.0)
            weighted = ()
            for b in tl.static_range(len(k)):
                weighted = weighted + (w[:, None] * k[b].to(tl.float32),)
            out = add_row_groups(out, weighted, LENGTH)
        if SOFTMAX:
            if SPLIT:
                tl.store(top + split * queries + candidate, highest, mask=present)
                tl.store(total + split * queries + candidate, sums, mask=present)
            else:
                # An empty history has the sum 0 and pools to exactly 0.
                nonempty = tl.where(sums == 0.0, 1.0, sums)
                tl.store(total + candidate, highest + tl.log(nonempty), mask=present)
                scaled = ()
                for b in tl.static_range(len(out)):
                    scaled = scaled + (out[b] / nonempty[:, None],)
                out = scaled
        if SPLIT:
            store_rows(pooled, DIM, tl.cast(split, tl.int64) * queries + candidate, present, out, D_SPANS)
        else:
            store_rows(pooled, DIM, candidate, present, out, D_SPANS)


@triton.jit(do_not_specialize=["queries", "splits"])
def combine_kernel(
    parts,  # [splits, Q, D] fp32
    top, total,  # [splits, Q] fp32, softmax only
    pooled,  # [Q, D]
    logsumexp,  # [Q] fp32, softmax only
    queries,  # Q
    dim,  # D
    splits,
    SOFTMAX: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
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
    where,  # see candidates_of
    pair_begin,  # [Q]
    logsumexp,  # [Q] fp32
    pair_weights,  # [total_pairs] fp32: scores, then weights
    queries,  # Q
    BLOCK: tl.constexpr,
):
    """w = exp(score - logsumexp) for one candidate's pairs."""
    candidate, present, _, count = candidates_of(tl.program_id(0), 0, queries, where, 1)
    to = tl.load(pair_begin + candidate)
    shift = tl.load(logsumexp + candidate)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    for t0 in range(0, tl.max(count, 0), BLOCK):
        t = t0 + tl.arange(0, BLOCK)
        inside = t[None, :] < count[:, None]
        score = tl.load(pair_weights + to[:, None] + t[None, :], mask=inside, other=0.0)
        tl.store(pair_weights + to[:, None] + t[None, :], tl.exp(score - shift[:, None]), mask=inside)


@triton.jit(do_not_specialize=["first", "last"])
def statistics_kernel(
    source, where, mlp, term, folded,  # as in forward_kernel
    count_parts,  # [programs] fp32
    mean_parts, square_parts,  # [programs, WIDTHS[LAYER]] fp32: mean, and sum of squared differences from it
    first, last,
    D_SPANS: tl.constexpr, Q_SOURCES: tl.constexpr, K_SOURCES: tl.constexpr, DIM: tl.constexpr,
    LAYERS: tl.constexpr, WIDTHS: tl.constexpr, STEPS: tl.constexpr, LAYER: tl.constexpr,
    STRIDES: tl.constexpr, ACTIVATION: tl.constexpr,
    GROUP: tl.constexpr, LENGTH: tl.constexpr, FOLD: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Mean and variance of z of hidden layer LAYER over all valid pairs, one part per program; the layers below have
    theirs. Tiles are merged by n = n1 + n2, d = m2 - m1, m = m1 + d n2 / n, S = S1 + S2 + d^2 n1 n2 / n."""
    DTYPE: tl.constexpr = source[2][0].dtype.element_ty
    key = ()
    product = ()
    if not FOLD:
        key, product = load_first(mlp[3], D_SPANS, static(LAYERS[0]), STRIDES, DTYPE)
    matrices = load_matrices(mlp[0], LAYERS, WIDTHS, LAYER, DTYPE)
    n = tl.zeros([], tl.float32)
    mean, square = zero_vectors(static(LAYERS[LAYER])), zero_vectors(static(LAYERS[LAYER]))
    for group in range(tl.program_id(0), tl.cdiv(last - first, GROUP), tl.num_programs(0)):
        candidate, present, start, count, a = open_group(
            tl.cast(group, tl.int32), first, last, source, where, folded, mlp[3], key,
            D_SPANS, Q_SOURCES, DIM, static(LAYERS[0]), WIDTHS[0], STRIDES, GROUP, FOLD, DTYPE,
        )  # fmt: skip
        for t0 in range(0, tl.max(count, 0), LENGTH):
            row, valid, _ = pairs_of(start, count, t0, where, GROUP, LENGTH)
            _, _, zs, _, _ = layers_of(
                row, valid, candidate, present & (count > 0), source, mlp, term, a, product, matrices, unseen_zero(t0),
                D_SPANS, Q_SOURCES, K_SOURCES, LAYERS, WIDTHS, STEPS, LAYER, ACTIVATION, LENGTH, FOLD, PRECISION, FAST,
            )  # fmt: skip
            here = tl.sum(valid.to(tl.float32), 0)  # at least 1: the longest history of the group reaches into the tile
            sums = add_column_sums(zero_vectors(static(LAYERS[LAYER])), select_rows(valid, zs[LAYER]))
            share = here / (n + here)
            new_mean = ()
            new_square = ()
            for o in tl.static_range(len(sums)):
                middle = sums[o] / here
                apart = tl.where(valid[:, None], zs[LAYER][o] - middle[None, :], 0.0)
                d = middle - mean[o]
                new_mean = new_mean + (mean[o] + d * share,)
                new_square = new_square + (square[o] + tl.sum(apart * apart, 0) + d * d * n * share,)
            n, mean, square = n + here, new_mean, new_square
    tl.store(count_parts + tl.program_id(0), n)
    store_vectors(mean_parts + tl.program_id(0) * WIDTHS[LAYER], mean, static(LAYERS[LAYER]))
    store_vectors(square_parts + tl.program_id(0) * WIDTHS[LAYER], square, static(LAYERS[LAYER]))
