"""What the unit's kernels share: which rows a tile holds, the first layer folded or not, and the layers above.

A tile holds LENGTH behaviours of each of GROUP consecutive candidates, ROWS = GROUP * LENGTH pairs. GROUP = 1 with FOLD
is the shape for long histories: z1 = A_i k + c_i, with A_i made once per candidate. Larger groups are the shape for
short ones: z1 = Wk' k + Wp (q k) + c_i, weights shared by the tile's candidates. c_i comes from `term_kernel`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.activations import activate, load_params
from din_kernels.backends.triton.blocks import (
    load_block,
    load_matrix,
    load_rows,
    load_vectors,
    multiply_add,
    multiply_wide,
    narrow,
    repeat_rows,
    static,
    unseen_zero,
)


@triton.jit
def load_source(
    tables,  # [V_k, D_k] each
    ids,  # [n] each, or none: then row n of the one table
    row,  # [rows] int64
    inside,  # [rows]
    D_SPANS: tl.constexpr,
    SOURCES: tl.constexpr,  # per span: (table, its first column, D_k)
):
    """Rows [rows, D] as blocks in the tables' dtype, zero where not inside."""
    out = ()
    for b in tl.static_range(len(D_SPANS) // 3):
        at = row
        if len(ids) > 0:
            at = tl.load(ids[SOURCES[b][0]] + row, mask=inside, other=0).to(tl.int64)
        column = tl.arange(0, D_SPANS[3 * b + 1])
        mask = inside[:, None] & (column < D_SPANS[3 * b + 2])[None, :]
        pointer = tables[SOURCES[b][0]] + at[:, None] * SOURCES[b][2] + (SOURCES[b][1] + column)[None, :]
        out = out + (tl.load(pointer, mask=mask, other=0.0),)
    return out


@triton.jit
def candidates_of(
    group, first, last,
    where,  # (begin [U], length [U], row_index [capacity] or None, row_mask [M] or None, query_to_user [Q] or None)
    GROUP: tl.constexpr,
):  # fmt: skip
    """Of a group's candidates: index, whether there is one, first position and number of behaviours, all [GROUP]."""
    candidate = first + group.to(tl.int64) * GROUP + tl.arange(0, GROUP)
    present = candidate < last
    user = candidate
    if where[4] is not None:
        user = tl.load(where[4] + candidate, mask=present, other=0)
    start = tl.load(where[0] + user, mask=present, other=0)
    count = tl.load(where[1] + user, mask=present, other=0).to(tl.int32)
    return candidate, present, start, count


@triton.jit
def part_of(count, split, splits, LENGTH: tl.constexpr):
    """Positions first .. last that one of `splits` programs takes of the group's longest history."""
    longest = tl.max(count, 0)
    each = tl.cdiv(tl.cdiv(longest, splits), LENGTH) * LENGTH
    first = split * each
    return first, min(first + each, longest)


@triton.jit
def pairs_of(start, count, t0, where, GROUP: tl.constexpr, LENGTH: tl.constexpr):
    """Of a tile's pairs [ROWS]: row of the history, whether it is valid, whether beyond Dice's statistics too."""
    t = t0 + tl.arange(0, LENGTH)
    valid = tl.reshape(t[None, :] < count[:, None], [GROUP * LENGTH])
    row = tl.reshape(start[:, None] + t[None, :], [GROUP * LENGTH])
    if where[2] is not None:
        row = tl.load(where[2] + row, mask=valid, other=0)
    counts = valid
    if where[3] is not None:
        counts = valid & (tl.load(where[3] + row, mask=valid, other=0) > 0)
    return row, valid, counts


@triton.jit
def load_first(first, D_SPANS: tl.constexpr, SPANS: tl.constexpr, STRIDES: tl.constexpr, DTYPE: tl.constexpr):
    """Wk' = Wk - Wd and Wp of the first layer, transposed."""
    key = load_matrix(first[0], STRIDES[0], D_SPANS, SPANS, DTYPE)
    return key, load_matrix(first[1], STRIDES[1], D_SPANS, SPANS, DTYPE)


@triton.jit
def fold(
    first,  # (Wk', Wp)
    zero,  # see blocks.unseen_zero
    q,  # [1, width] per span of D, of the one candidate
    D_SPANS: tl.constexpr, SPANS: tl.constexpr, STRIDES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A_i^T = Wk'^T + diag(q_i) Wp^T, block by block, so that few of them are in registers at once.

    Read anew for every candidate, from the L2 cache: kept, they would take 40 registers of each of 256 threads.
    """
    out = ()
    for i in tl.static_range(len(q)):
        column = tl.trans(q[i]).to(tl.float32)
        row = ()
        for o in tl.static_range(len(SPANS) // 3):
            key = load_block(first[0], STRIDES[0], zero, D_SPANS, i, SPANS, o).to(tl.float32)
            product = load_block(first[1], STRIDES[1], zero, D_SPANS, i, SPANS, o).to(tl.float32)
            row = row + (narrow(key + column * product, DTYPE),)
        out = out + (row,)
    return out


@triton.jit
def open_group(
    group, first, last,
    source, where, folded,  # as in forward_kernel
    first_layer,  # (Wk', Wp); none for outer, whose A comes ready
    key,  # Wk'^T, where not FOLD
    D_SPANS: tl.constexpr, Q_SOURCES: tl.constexpr, DIM: tl.constexpr, SPANS: tl.constexpr, WIDTH: tl.constexpr,
    STRIDES: tl.constexpr, GROUP: tl.constexpr, FOLD: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """candidates_of, then whether there are behaviours [GROUP], and A^T or Wk'^T."""
    candidate, present, start, count = candidates_of(group, first, last, where, GROUP)
    active = present & (count > 0)
    a = key
    if len(first_layer) == 0:
        a = load_matrix(folded + group.to(tl.int64) * WIDTH * DIM, DIM, D_SPANS, SPANS, DTYPE)
    elif FOLD:
        q = load_source(source[0], source[1], candidate, active, D_SPANS, Q_SOURCES)
        a = fold(first_layer, unseen_zero(group), q, D_SPANS, SPANS, STRIDES, DTYPE)
    return candidate, present, start, count, a


@triton.jit
def load_terms(
    source, term,  # as in forward_kernel
    candidate, active,  # [GROUP]
    D_SPANS: tl.constexpr, SOURCES: tl.constexpr, SPANS: tl.constexpr, WIDTH: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """q [GROUP, width] per span of D where not FOLD, c [GROUP, width] fp32 per span of H1; zero where not active, so
    that a NaN there reaches no sum. Anew for every tile, as load_channels."""
    q = ()
    if not FOLD:
        q = load_source(source[0], source[1], candidate, active, D_SPANS, SOURCES)
    return q, load_rows(term, WIDTH, candidate, active, SPANS)


@triton.jit
def times_query(k, q, LENGTH: tl.constexpr):
    """q k per pair, in the dtype of k."""
    out = ()
    each = repeat_rows(q, LENGTH)
    for b in tl.static_range(len(k)):
        out = out + (narrow(each[b].to(tl.float32) * k[b].to(tl.float32), k[b].dtype),)
    return out


@triton.jit
def load_matrices(weights, LAYERS: tl.constexpr, WIDTHS: tl.constexpr, UP_TO: tl.constexpr, DTYPE: tl.constexpr):
    """weight^T of hidden layers 1 .. UP_TO, where there are so many; nothing for layer 0."""
    out = ((),)
    for layer in tl.static_range(1, min(UP_TO + 1, len(WIDTHS))):
        matrix = load_matrix(weights[layer], WIDTHS[layer - 1], static(LAYERS[layer - 1]), static(LAYERS[layer]), DTYPE)
        out = out + (matrix,)
    return out


@triton.jit
def load_last(weights, zero, LAYERS: tl.constexpr, HIDDEN: tl.constexpr):
    """Weight of the layer that gives the score, where a hidden one is below it; anew for every tile."""
    weight = ()
    if HIDDEN > 0:
        weight = load_vectors(weights[HIDDEN], zero, static(LAYERS[HIDDEN - 1]), 1, 0.0)
    return weight


@triton.jit
def first_z(
    k,  # [ROWS, width] per span of D
    q,  # [GROUP, width] per span of D
    term,  # [GROUP, width] fp32 per span of the first layer
    key,  # A_i^T where FOLD, else Wk'^T
    product,  # Wp^T where not FOLD
    LENGTH: tl.constexpr, FOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    z = multiply_add(repeat_rows(term, LENGTH), k, key, PRECISION)
    if not FOLD:
        z = multiply_add(z, times_query(k, q, LENGTH), product, PRECISION)
    return z


@triton.jit
def layers_of(
    row, inside,  # [ROWS] of the history, by pairs_of; the rows to load
    candidate, active,  # [GROUP]
    source, mlp, term,  # as in forward_kernel
    a, product,  # A_i^T where FOLD, else Wk'^T; Wp^T where not FOLD
    matrices,  # by load_matrices
    zero,  # see blocks.unseen_zero
    D_SPANS: tl.constexpr, Q_SOURCES: tl.constexpr, K_SOURCES: tl.constexpr, LAYERS: tl.constexpr, WIDTHS: tl.constexpr,
    STEPS: tl.constexpr,
    UP_TO: tl.constexpr,  # activations of the layers below, z of the layers up to it, where there is one
    ACTIVATION: tl.constexpr, LENGTH: tl.constexpr, FOLD: tl.constexpr, PRECISION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Of a tile: k [ROWS, width] and q [GROUP, width] (none where FOLD) per span of D; per hidden layer z and h
    [ROWS, width] fp32 per span, and the activation's parameters.

    Vectors are loaded anew for every tile, and each layer's where it is reached: of Dice, bias, alpha, mean and
    deviation would take 80 registers of every thread.
    """
    DTYPE: tl.constexpr = source[2][0].dtype.element_ty
    k = load_source(source[2], source[3], row, inside, D_SPANS, K_SOURCES)
    q, c = load_terms(source, term, candidate + zero, active, D_SPANS, Q_SOURCES, static(LAYERS[0]), WIDTHS[0], FOLD)
    z = first_z(k, q, c, a, product, LENGTH, FOLD, PRECISION)
    zs = (z,)
    hs = ()
    params = ()
    for layer in tl.static_range(UP_TO):
        own = load_params(mlp[2][layer], zero, static(LAYERS[layer]), static(STEPS[layer]), ACTIVATION)
        h = ()
        for o in tl.static_range(len(z)):
            h = h + (activate(z[o], own[o], ACTIVATION, FAST),)
        hs = hs + (h,)
        params = params + (own,)
        if layer + 1 < len(STEPS):
            start = ()
            bias = load_vectors(mlp[1][layer + 1], zero, static(LAYERS[layer + 1]), 1, 0.0)
            for o in tl.static_range(len(bias)):
                start = start + (tl.broadcast_to(bias[o][None, :], [h[0].shape[0], tl.constexpr(bias[o].shape[0])]),)
            z = multiply_wide(start, h, matrices[layer + 1], DTYPE, PRECISION)
            zs = zs + (z,)
    return k, q, zs, hs, params


@triton.jit
def score_of(zs, hs, last, bias, ROWS: tl.constexpr, HIDDEN: tl.constexpr):
    """The last layer, [ROWS] fp32; without a hidden layer the first is the last, and all but its one column is zero."""
    total = tl.zeros([ROWS], tl.float32)
    if HIDDEN == 0:
        return total + tl.sum(zs[0][0], 1)
    else:
        for o in tl.static_range(len(last)):
            total += tl.sum(hs[HIDDEN - 1][o] * last[o][None, :], 1)
        return total + bias
