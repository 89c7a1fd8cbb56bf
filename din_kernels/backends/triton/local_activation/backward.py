"""Backward kernel of the unit: recomputes the forward tile by tile and keeps weight gradients in its program.

With g = dL/do_i, gw the gradient of the returned weights, dw_t = <g, k_t> + gw_t:

    ds  = scale dw_t  (none),   scale w_t (dw_t - sum_r w_r dw_r)  (softmax; sum_r w_r dw_r = <g, o_i> + sum_r w_r gw_r)
    dz2 = (ds w3) act'(z2)      dz1 = (W2^T dz2) act'(z1)
    dk_t = w_t g + A_i^T dz1    dA_i = sum_t dz1 k_t^T    dc_i = sum_t dz1
    dWk' += dA    dWp += dA diag(q)    dq = sum_h Wp[h] dA[h]  and, outside, (Wq + Wd)^T dc
"""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.activations import gradient
from din_kernels.backends.triton.blocks import (
    add_outer,
    add_row_groups,
    add_vectors,
    dot_rows,
    load_block,
    load_rows,
    load_vectors,
    multiply_transposed,
    narrow,
    repeat_rows,
    select_rows,
    static,
    store_matrix,
    store_rows,
    to_dtype,
    unseen_zero,
    zero_matrix,
    zero_rows,
)
from din_kernels.backends.triton.local_activation.tile import (
    layers_of,
    load_first,
    load_last,
    load_matrices,
    load_source,
    open_group,
    pairs_of,
    part_of,
    score_of,
    times_query,
)


@triton.jit
def repeat_vector(x, EACH: tl.constexpr):
    """Every entry of x [groups] EACH times."""
    return tl.reshape(tl.broadcast_to(x[:, None], [x.shape[0], EACH]), [x.shape[0] * EACH])


@triton.jit
def load_pairs(pointer, pair_begin, candidate, active, t0, inside, GROUP: tl.constexpr, LENGTH: tl.constexpr):
    """Entries of pairs t0 .. t0 + LENGTH of each candidate, [GROUP * LENGTH] fp32."""
    at = tl.load(pair_begin + candidate, mask=active, other=0)[:, None] + (t0 + tl.arange(0, LENGTH))[None, :]
    return tl.load(pointer + tl.reshape(at, [GROUP * LENGTH]), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def without_residual(
    ds, w, counts,  # [GROUP * LENGTH]: w (dw - mean), w, and whether the pair counts
    residual,  # [GROUP]: sum of ds over the tiles before
    ends,  # [GROUP]: whether the candidate's history ends in this tile, none of it in another program
    GROUP: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """ds, and the residual with this tile's. Over a whole history sum_r w_r (dw_r - mean) would be 0 if pooled, of
    which the mean is made, were exact; the last tile takes what it is, in proportion to w, since gradients of the last
    layer are sums over terms that cancel."""
    tile = tl.reshape(tl.where(counts, ds, 0.0), [GROUP, LENGTH])
    weight = tl.reshape(tl.where(counts, w, 0.0), [GROUP, LENGTH])
    residual += tl.sum(tile, 1)
    total = tl.sum(weight, 1)
    takes = ends & (total > 0)
    share = tl.where(takes, residual / tl.where(takes, total, 1.0), 0.0)
    return tl.reshape(tile - weight * share[:, None], [GROUP * LENGTH]), residual


@triton.jit
def zero_layers(LAYERS: tl.constexpr, HIDDEN: tl.constexpr):
    """Gradient of weight^T per hidden layer above the first, from the last to the second."""
    out = ()
    for i in tl.static_range(HIDDEN - 1):
        out = out + (zero_matrix(static(LAYERS[HIDDEN - 2 - i]), static(LAYERS[HIDDEN - 1 - i])),)
    return out


@triton.jit
def through_activation(zs, dh, params, ACTIVATION: tl.constexpr, FAST: tl.constexpr):
    """dz per span, and per sum of the activation what each pair adds to it, per span."""
    dz = ()
    added = ()
    for o in tl.static_range(len(zs)):
        here, sums = gradient(zs[o], dh[o], params[o], ACTIVATION, FAST)
        dz = dz + (here,)
        added = added + (sums,)
    return dz, added


@triton.jit
def column_sums(
    x,  # [rows, width] fp32 per span
    inside,  # [rows]
):
    """Sums over the rows inside, [width] per span."""
    out = ()
    for o in tl.static_range(len(x)):
        out = out + (tl.sum(tl.where(inside[:, None], x[o], 0.0), 0),)
    return out


@triton.jit
def through_layers(
    ds,  # [ROWS] fp32
    zs, hs, params, matrices, mlp, zero,  # as in layers_of
    inside,  # [ROWS]: pairs that count in sums
    grads,  # by zero_layers
    part,  # [SIZE] fp32, of this program: takes this tile's sums over pairs
    LAYERS: tl.constexpr, WIDTHS: tl.constexpr, HIDDEN: tl.constexpr, STOP: tl.constexpr, SUMS: tl.constexpr,
    AT: tl.constexpr, AT_LAYERS: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dz1, and grads with this tile's; no further down than hidden layer STOP, of which the sums alone are made.

    Sums over pairs, vectors, are added in memory at once: kept across the loop, the five of Dice's two layers would
    take some 50 registers of every thread.
    """
    dz = ()
    out = ()
    if HIDDEN == 0:
        dz = (tl.where((tl.arange(0, 16) == 0)[None, :], ds[:, None], 0.0),)
    else:
        w_last = load_vectors(mlp[0][HIDDEN], zero, static(LAYERS[HIDDEN - 1]), 1, 0.0)
        if STOP < 0:
            d_last = ()
            for o in tl.static_range(len(w_last)):
                d_last = d_last + (ds[:, None] * hs[HIDDEN - 1][o],)
            add_vectors(part + AT[2], column_sums(d_last, inside), static(LAYERS[HIDDEN - 1]))
        for o in tl.static_range(len(w_last)):
            dz = dz + (ds[:, None] * w_last[o][None, :],)
    for layer in tl.static_range(HIDDEN - 1, -1, -1):
        if layer >= STOP:
            dh = dz
            if layer < HIDDEN - 1:
                dh = multiply_transposed(
                    to_dtype(dz, DTYPE), matrices[layer + 1], ROWS, static(LAYERS[layer]), PRECISION
                )
            dz, added = through_activation(zs[layer], dh, params[layer], ACTIVATION, FAST)
            # Dice's batch statistics give rows that are not there a gradient too.
            dz = select_rows(inside, dz)
            if STOP < 0 or STOP == layer:
                for j in tl.static_range(SUMS):
                    this = ()
                    for o in tl.static_range(len(added)):
                        this = this + (added[o][j],)
                    at = AT_LAYERS[layer][2] + j * WIDTHS[layer]
                    add_vectors(part + at, column_sums(this, inside), static(LAYERS[layer]))
            if layer > 0 and STOP < 0:
                add_vectors(part + AT_LAYERS[layer][1], column_sums(dz, inside), static(LAYERS[layer]))
                matrix = grads[HIDDEN - 1 - layer]
                out = out + (add_outer(matrix, to_dtype(hs[layer - 1], DTYPE), to_dtype(dz, DTYPE), PRECISION),)
    if STOP >= 0:
        out = grads
    return dz, out


@triton.jit
def add_row_gradients(
    grads,  # per table [M, D_k]; fp32 where SHARED
    row, inside,  # [ROWS]
    values,  # [ROWS, width] fp32 per span of D
    D_SPANS: tl.constexpr, SOURCES: tl.constexpr,
    SHARED: tl.constexpr,  # candidates that share a row: "none"; "atomic"; "ordered": all in this program, one by one
):  # fmt: skip
    if SHARED == "ordered":
        tl.debug_barrier()  # what other threads of the program stored for the candidate before
    for b in tl.static_range(len(D_SPANS) // 3):
        pointer = grads[SOURCES[b][0]]
        column = tl.arange(0, D_SPANS[3 * b + 1])
        at = row[:, None] * SOURCES[b][2] + (SOURCES[b][1] + column)[None, :]
        mask = inside[:, None] & (column < D_SPANS[3 * b + 2])[None, :]
        if SHARED == "atomic":
            tl.atomic_add(pointer + at, values[b], mask=mask, sem="relaxed")
        elif SHARED == "ordered":
            tl.store(pointer + at, tl.load(pointer + at, mask=mask, other=0.0) + values[b], mask=mask)
        else:
            tl.store(pointer + at, narrow(values[b], pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["queries", "first", "last", "splits"])
def backward_kernel(
    source, where, mlp, term, folded,  # as in forward_kernel
    grad_pooled, pooled,  # [Q, D]
    logsumexp,  # [Q] fp32, softmax only
    pair_begin,  # [Q]
    pair_weights, grad_pair_weights,  # [total_pairs] fp32; grad_pair_weights None: weights were not returned
    grad_query,  # [splits, Q, D] fp32: the part through A
    grad_term,  # [splits, Q, H1] fp32: dc
    grad_folded,  # outer: dA [last - first, H1, D] fp32
    grad_rows,  # per table [M, D_k], or none
    parts,  # [programs, SIZE] fp32, zeros: gradients of weights, per program
    order, bounds,  # SHARED == "ordered": candidates by user [last - first]; program p takes bounds[p] .. bounds[p + 1]
    queries, first, last,
    splits,
    scale,
    D_SPANS: tl.constexpr, Q_SOURCES: tl.constexpr, K_SOURCES: tl.constexpr, DIM: tl.constexpr,
    LAYERS: tl.constexpr, WIDTHS: tl.constexpr, STEPS: tl.constexpr, HIDDEN: tl.constexpr,
    STRIDES: tl.constexpr, ACTIVATION: tl.constexpr, SOFTMAX: tl.constexpr,
    GROUP: tl.constexpr, LENGTH: tl.constexpr, FOLD: tl.constexpr,
    PRECISION: tl.constexpr, FAST: tl.constexpr,
    STOP: tl.constexpr,  # -1, or the hidden layer whose Dice sums alone are wanted
    SUMS: tl.constexpr,  # of the activation
    SIZE: tl.constexpr, AT: tl.constexpr,  # where in a part: Wk', Wp, w_last, b_last
    AT_LAYERS: tl.constexpr,  # per hidden layer: W, b, sums
    SHARED: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = source[2][0].dtype.element_ty
    ROWS: tl.constexpr = GROUP * LENGTH
    key = ()
    product = ()
    if not FOLD:
        key, product = load_first(mlp[3], D_SPANS, static(LAYERS[0]), STRIDES, DTYPE)
    matrices = load_matrices(mlp[0], LAYERS, WIDTHS, HIDDEN, DTYPE)
    b_last = tl.load(mlp[1][HIDDEN]).to(tl.float32)
    d_key = ()
    d_product = ()
    if len(mlp[3]) > 0:
        d_key, d_product = zero_matrix(D_SPANS, static(LAYERS[0])), zero_matrix(D_SPANS, static(LAYERS[0]))
    d_layers = zero_layers(LAYERS, HIDDEN)
    d_bias = tl.zeros([], tl.float32)
    parts += tl.program_id(0).to(tl.int64) * SIZE
    begin, end, step = tl.program_id(0), tl.cdiv(last - first, GROUP) * splits, tl.num_programs(0)
    if SHARED == "ordered":
        begin = tl.load(bounds + tl.program_id(0)).to(tl.int32)
        end, step = tl.load(bounds + tl.program_id(0) + 1).to(tl.int32), tl.num_programs(0) * 0 + 1
    for work in range(begin, end, step):
        group, split = work // splits, work % splits
        if SHARED == "ordered":
            group = tl.load(order + work)
        candidate, present, start, count, a = open_group(
            tl.cast(group, tl.int32), first, last, source, where, folded, mlp[3], key,
            D_SPANS, Q_SOURCES, DIM, static(LAYERS[0]), WIDTHS[0], STRIDES, GROUP, FOLD, DTYPE,
        )  # fmt: skip
        active = present & (count > 0)
        shift, delta = tl.zeros([GROUP], tl.float32), tl.zeros([GROUP], tl.float32)
        if SOFTMAX:
            shift = tl.load(logsumexp + candidate, mask=active, other=0.0)
            g = load_rows(grad_pooled, DIM, candidate, active, D_SPANS)
            delta = dot_rows(g, load_rows(pooled, DIM, candidate, active, D_SPANS), GROUP)
            if grad_pair_weights is not None:
                for t0 in range(0, tl.max(count, 0), LENGTH):
                    _, _, counts = pairs_of(start, count, t0, where, GROUP, LENGTH)
                    w = load_pairs(pair_weights, pair_begin, candidate, active, t0, counts, GROUP, LENGTH)
                    gw = load_pairs(grad_pair_weights, pair_begin, candidate, active, t0, counts, GROUP, LENGTH)
                    delta += tl.sum(tl.reshape(w * gw, [GROUP, LENGTH]), 1)
        residual = tl.zeros([GROUP], tl.float32)
        dq = zero_rows(GROUP, D_SPANS)
        dc = zero_rows(GROUP, static(LAYERS[0]))
        da = ()
        if FOLD:
            da = zero_matrix(D_SPANS, static(LAYERS[0]))
        t_first, t_last = part_of(count, split, splits, LENGTH)
        for t0 in range(t_first, t_last, LENGTH):
            row, valid, counts = pairs_of(start, count, t0, where, GROUP, LENGTH)
            zero = unseen_zero(t0)
            k, q, zs, hs, params = layers_of(
                row, valid, candidate, active, source, mlp, term, a, product, matrices, zero,
                D_SPANS, Q_SOURCES, K_SOURCES, LAYERS, WIDTHS, STEPS, HIDDEN, ACTIVATION, LENGTH, FOLD, PRECISION, FAST,
            )  # fmt: skip
            w_last = load_last(mlp[0], zero, LAYERS, HIDDEN)
            w = scale * score_of(zs, hs, w_last, b_last, ROWS, HIDDEN)
            each_g = repeat_rows(load_rows(grad_pooled, DIM, candidate + zero, active, D_SPANS), LENGTH)
            dw = dot_rows(each_g, k, ROWS)
            if grad_pair_weights is not None:
                dw += load_pairs(grad_pair_weights, pair_begin, candidate, active, t0, counts, GROUP, LENGTH)
            if SOFTMAX:
                w = tl.exp(w - repeat_vector(shift, LENGTH))
                ends = (t0 + LENGTH >= count) & (splits == 1)
                dw, residual = without_residual(
                    w * (dw - repeat_vector(delta, LENGTH)), w, counts, residual, ends, GROUP, LENGTH
                )
            ds = tl.where(counts, scale * dw, 0.0)
            dz, d_layers = through_layers(
                ds, zs, hs, params, matrices, mlp, zero, valid, d_layers, parts, LAYERS, WIDTHS, HIDDEN, STOP, SUMS,
                AT, AT_LAYERS, ROWS, DTYPE, PRECISION, ACTIVATION, FAST,
            )  # fmt: skip
            if STOP < 0:
                d_bias += tl.sum(ds, 0)
                dc = add_row_groups(dc, dz, LENGTH)
                dz = to_dtype(dz, DTYPE)
                dk = multiply_transposed(dz, a, ROWS, D_SPANS, PRECISION)
                if FOLD:
                    da = add_outer(da, k, dz, PRECISION)
                else:
                    d_key = add_outer(d_key, k, dz, PRECISION)
                    d_product = add_outer(d_product, times_query(k, q, LENGTH), dz, PRECISION)
                    by_product = multiply_transposed(dz, product, ROWS, D_SPANS, PRECISION)
                    each_q = repeat_rows(q, LENGTH)
                    through_k = ()
                    through_q = ()
                    for b in tl.static_range(len(dk)):
                        through_k = through_k + (dk[b] + each_q[b].to(tl.float32) * by_product[b],)
                        through_q = through_q + (k[b].to(tl.float32) * by_product[b],)
                    dk = through_k
                    dq = add_row_groups(dq, through_q, LENGTH)
                if len(grad_rows) > 0:
                    both = ()
                    for b in tl.static_range(len(dk)):
                        both = both + (dk[b] + tl.where(counts[:, None], w[:, None] * each_g[b].to(tl.float32), 0.0),)
                    add_row_gradients(grad_rows, row, valid, both, D_SPANS, K_SOURCES, SHARED)
        if STOP < 0:
            if len(mlp[3]) == 0:
                store_matrix(
                    grad_folded + tl.cast(group, tl.int64) * WIDTHS[0] * DIM, DIM, da, D_SPANS, static(LAYERS[0])
                )
            elif FOLD:
                zero = unseen_zero(group)
                q = load_source(source[0], source[1], candidate, active, D_SPANS, Q_SOURCES)
                new_key = ()
                new_product = ()
                new_q = ()
                for b in tl.static_range(len(da)):
                    row_key = ()
                    row_product = ()
                    column = tl.trans(q[b]).to(tl.float32)
                    along = tl.zeros([tl.constexpr(D_SPANS[3 * b + 1])], tl.float32)
                    for o in tl.static_range(len(da[b])):
                        row_key = row_key + (d_key[b][o] + da[b][o],)
                        row_product = row_product + (d_product[b][o] + da[b][o] * column,)
                        weight = load_block(mlp[3][1], STRIDES[1], zero, D_SPANS, b, static(LAYERS[0]), o)
                        along += tl.sum(da[b][o] * narrow(weight, DTYPE).to(tl.float32), 1)
                    new_key, new_product = new_key + (row_key,), new_product + (row_product,)
                    new_q = new_q + (along[None, :],)
                d_key, d_product, dq = new_key, new_product, new_q
            at = tl.cast(split, tl.int64) * queries + candidate
            store_rows(grad_query, DIM, at, present, dq, D_SPANS)
            store_rows(grad_term, WIDTHS[0], at, present, dc, static(LAYERS[0]))
    if STOP < 0:
        for layer in tl.static_range(1, HIDDEN):
            store_matrix(
                parts + AT_LAYERS[layer][0],
                WIDTHS[layer - 1],
                d_layers[HIDDEN - 1 - layer],
                static(LAYERS[layer - 1]),
                static(LAYERS[layer]),
            )
        if len(mlp[3]) > 0:
            store_matrix(parts + AT[0], DIM, d_key, D_SPANS, static(LAYERS[0]))
            store_matrix(parts + AT[1], DIM, d_product, D_SPANS, static(LAYERS[0]))
        if HIDDEN > 0:
            tl.store(parts + AT[3], d_bias)
