"""What the unit's kernels share: which rows a tile holds, the first layer folded or not, and the layers above.

A group is GROUP consecutive candidates, a tile LENGTH behaviours of each of them:

                        tile t0 = 0     tile LENGTH     tile 2 LENGTH
                      +---------------+---------------+---------------+
    candidate 0       | k k k k k k k | k k k k k k k | k k . . . . . |     k  a behaviour: `valid`
    candidate 1       | k k k k k k k | k . . . . . . | . . . . . . . |     .  beyond the history: selected away
       ...            |               |               |               |
    candidate GROUP-1 | k k k . . . . | . . . . . . . | . . . . . . . |
                      +---------------+---------------+---------------+

A tile's ROWS = GROUP * LENGTH pairs follow each other candidate by candidate. Programs stay and loop: program p takes
work p, p + programs, ... Where the candidates are few, `splits` programs share a group: work = group * splits + split,
and each split takes as many consecutive tiles.

GROUP = 1 with `folded` is the shape for long histories: z1 = A_i k + c_i, with A_i made once per candidate. Larger
groups are the shape for short ones: z1 = Wk' k + Wp (q k) + c_i, with weights that the tile's candidates share. c_i
comes from `term_kernel`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.activations import activate, load_params
from din_kernels.backends.triton.arithmetic import multiply_add, multiply_wide, repeat_rows
from din_kernels.backends.triton.blocks import (
    load_block,
    load_matrix,
    load_rows,
    load_vectors,
    narrow,
    static,
    unseen_zero,
)

# --- which rows -------------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Consecutive candidates, [GROUP] each."""

    candidate: tl.tensor  # index
    present: tl.tensor  # whether there is one
    active: tl.tensor  # whether it has behaviours
    start: tl.tensor  # first position
    count: tl.tensor  # number of behaviours


class Pairs(NamedTuple):
    """A tile's pairs, [ROWS] each."""

    row: tl.tensor  # of the history
    valid: tl.tensor  # whether there is a behaviour
    attended: tl.tensor  # whether it has a score, and not only a share in Dice's statistics


@triton.jit
def candidates_of(group, first, last, where, GROUP: tl.constexpr):
    """A group's candidates, those of first .. last."""
    candidate = first + group.to(tl.int64) * GROUP + tl.arange(0, GROUP)
    present = candidate < last
    user = candidate
    if where.query_to_user is not None:
        user = tl.load(where.query_to_user + candidate, mask=present, other=0)
    start = tl.load(where.begin + user, mask=present, other=0)
    count = tl.load(where.length + user, mask=present, other=0).to(tl.int32)
    return Group(candidate, present, present & (count > 0), start, count)


@triton.jit
def part_of(count, split, splits, LENGTH: tl.constexpr):
    """Positions first .. last that one of `splits` programs takes of the group's longest history."""
    longest = tl.max(count, 0)
    each = tl.cdiv(tl.cdiv(longest, splits), LENGTH) * LENGTH
    first = split * each
    return first, min(first + each, longest)


@triton.jit
def pairs_of(group, t0, where, TILE: tl.constexpr):
    """The pairs of a group's tile at t0."""
    ROWS: tl.constexpr = TILE.group * TILE.length
    t = t0 + tl.arange(0, TILE.length)
    valid = tl.reshape(t[None, :] < group.count[:, None], [ROWS])
    row = tl.reshape(group.start[:, None] + t[None, :], [ROWS])
    if where.row_index is not None:
        row = tl.load(where.row_index + row, mask=valid, other=0)
    attended = valid
    if where.row_mask is not None:
        attended = valid & (tl.load(where.row_mask + row, mask=valid, other=0) > 0)
    return Pairs(row, valid, attended)


@triton.jit
def load_source(
    source,  # arguments.Source
    row,  # [rows] int64
    inside,  # [rows]
    D_SPANS: tl.constexpr,
    PLACES: tl.constexpr,  # per span
):
    """Rows [rows, D] as blocks in the tables' dtype, zero where not inside."""
    out = ()
    for b in tl.static_range(len(D_SPANS.width)):
        at = row
        if len(source.ids) > 0:
            at = tl.load(source.ids[PLACES.table[b]] + row, mask=inside, other=0).to(tl.int64)
        column = tl.arange(0, D_SPANS.width[b])
        mask = inside[:, None] & (column < D_SPANS.valid[b])[None, :]
        pointer = source.tables[PLACES.table[b]]
        pointer = pointer + at[:, None] * PLACES.width[b] + (PLACES.column[b] + column)[None, :]
        out = out + (tl.load(pointer, mask=mask, other=0.0),)
    return out


# --- what stays in a program ------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """Transposed weights that a program keeps for all its tiles."""

    weight_k: tuple  # Wk'^T where not folded
    weight_qk: tuple  # Wp^T where not folded
    layers: tuple  # weight^T per hidden layer; nothing for the first


@triton.jit
def keep_weights(mlp, UNIT: tl.constexpr, TILE: tl.constexpr, UP_TO: tl.constexpr, DTYPE: tl.constexpr):
    """The weights of hidden layers up to UP_TO, where there are so many."""
    weight_k = ()
    weight_qk = ()
    if not TILE.folded:
        weight_k = load_matrix(mlp.weight_k, UNIT.stride_k, static(UNIT.d_spans), static(UNIT.layers[0]), DTYPE)
        weight_qk = load_matrix(mlp.weight_qk, UNIT.stride_qk, static(UNIT.d_spans), static(UNIT.layers[0]), DTYPE)
    layers = ((),)
    for layer in tl.static_range(1, min(UP_TO + 1, len(UNIT.widths))):
        matrix = load_matrix(
            mlp.weights[layer],
            UNIT.widths[layer - 1],
            static(UNIT.layers[layer - 1]),
            static(UNIT.layers[layer]),
            DTYPE,
        )
        layers = layers + (matrix,)
    return Kept(weight_k, weight_qk, layers)


# --- the first layer --------------------------------------------------------------------------------------------------


@triton.jit
def fold(
    mlp,
    zero,  # see blocks.unseen_zero
    q,  # [1, width] per span of D, of the one candidate
    UNIT: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """A_i^T = Wk'^T + diag(q_i) Wp^T, block by block, so that few of them are in registers at once.

    The weights are read anew for every candidate, from the L2 cache: kept, they would take 40 registers of each of 256
    threads.
    """
    IN: tl.constexpr = UNIT.d_spans
    OUT: tl.constexpr = UNIT.layers[0]
    out = ()
    for i in tl.static_range(len(q)):
        column = tl.trans(q[i]).to(tl.float32)
        row = ()
        for o in tl.static_range(len(OUT.width)):
            by_k = load_block(mlp.weight_k, UNIT.stride_k, zero, IN, i, OUT, o).to(tl.float32)
            by_qk = load_block(mlp.weight_qk, UNIT.stride_qk, zero, IN, i, OUT, o).to(tl.float32)
            row = row + (narrow(by_k + column * by_qk, DTYPE),)
        out = out + (row,)
    return out


@triton.jit
def open_group(number, first, last, inputs, kept, UNIT: tl.constexpr, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """The group of this number, and what multiplies k: A^T where folded, else Wk'^T."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    SPANS: tl.constexpr = UNIT.layers[0]
    PLACES: tl.constexpr = UNIT.query_places
    group = candidates_of(number, first, last, inputs.where, TILE.group)
    a = kept.weight_k
    if inputs.folded is not None:
        a = load_matrix(
            inputs.folded + number.to(tl.int64) * UNIT.widths[0] * UNIT.dim, UNIT.dim, D_SPANS, SPANS, DTYPE
        )
    elif TILE.folded:
        q = load_source(inputs.query, group.candidate, group.active, D_SPANS, PLACES)
        a = fold(inputs.mlp, unseen_zero(number), q, UNIT, DTYPE)
    return group, a


@triton.jit
def times_query(k, q, LENGTH: tl.constexpr):
    """q k per pair, in the dtype of k."""
    out = ()
    each = repeat_rows(q, LENGTH)
    for b in tl.static_range(len(k)):
        out = out + (narrow(each[b].to(tl.float32) * k[b].to(tl.float32), k[b].dtype),)
    return out


# --- the layers of a tile ---------------------------------------------------------------------------------------------


class Values(NamedTuple):
    """What a tile's layers leave."""

    k: tuple  # [ROWS, width] per span of D
    q: tuple  # [GROUP, width] per span of D; nothing where folded
    zs: tuple  # per hidden layer [ROWS, width] fp32 per span
    hs: tuple  # the same behind the activation
    params: tuple  # per hidden layer and span the activation's parameters


@triton.jit
def load_last(mlp, zero, UNIT: tl.constexpr):
    """Weight of the layer that gives the score, where a hidden one is below it; loaded anew for every tile."""
    weight = ()
    if UNIT.hidden > 0:
        weight = load_vectors(mlp.weights[UNIT.hidden], zero, static(UNIT.layers[UNIT.hidden - 1]), 1, 0.0)
    return weight


@triton.jit
def start_of(bias, ROWS: tl.constexpr):
    """The bias on every row, as what a product is added to."""
    out = ()
    for o in tl.static_range(len(bias)):
        out = out + (tl.broadcast_to(bias[o][None, :], [ROWS, tl.constexpr(bias[o].shape[0])]),)
    return out


@triton.jit
def layers_of(
    inputs,
    kept,
    a,  # A_i^T where folded, else Wk'^T
    group,
    row,  # [ROWS] of the history
    inside,  # [ROWS]: the rows to load
    zero,  # see blocks.unseen_zero
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    UP_TO: tl.constexpr,  # activations of the layers below it; z of the layers up to it, where there is one
):
    """The layers of a tile.

    Vectors are loaded anew for every tile, each layer's where it is reached: Dice's bias, alpha, mean and deviation
    would take 80 registers of every thread. Terms and queries are zero where a candidate has no behaviours, so that a
    NaN there reaches no sum.
    """
    D_SPANS: tl.constexpr = UNIT.d_spans
    SPANS: tl.constexpr = UNIT.layers[0]
    QUERY_PLACES: tl.constexpr = UNIT.query_places
    HISTORY_PLACES: tl.constexpr = UNIT.history_places
    DTYPE: tl.constexpr = inputs.history.tables[0].dtype.element_ty
    ROWS: tl.constexpr = TILE.group * TILE.length
    PRECISION: tl.constexpr = TILE.precision
    ACTIVATION: tl.constexpr = UNIT.activation
    # z1
    k = load_source(inputs.history, row, inside, D_SPANS, HISTORY_PLACES)
    candidate = group.candidate + zero
    q = ()
    if not TILE.folded:
        q = load_source(inputs.query, candidate, group.active, D_SPANS, QUERY_PLACES)
    term = load_rows(inputs.term, UNIT.widths[0], candidate, group.active, SPANS)
    z = multiply_add(repeat_rows(term, TILE.length), k, a, PRECISION)
    if not TILE.folded:
        z = multiply_add(z, times_query(k, q, TILE.length), kept.weight_qk, PRECISION)
    # The activation of each layer and z of the next.
    zs = (z,)
    hs = ()
    params = ()
    for layer in tl.static_range(UP_TO):
        own = load_params(inputs.mlp.params[layer], zero, static(UNIT.layers[layer]), static(UNIT.steps[layer]))
        h = ()
        for o in tl.static_range(len(z)):
            h = h + (activate(z[o], own[o], ACTIVATION, UNIT.fast),)
        hs = hs + (h,)
        params = params + (own,)
        if layer + 1 < len(UNIT.steps):
            bias = load_vectors(inputs.mlp.biases[layer + 1], zero, static(UNIT.layers[layer + 1]), 1, 0.0)
            z = multiply_wide(start_of(bias, ROWS), h, kept.layers[layer + 1], DTYPE, PRECISION)
            zs = zs + (z,)
    return Values(k, q, zs, hs, params)


@triton.jit
def score_of(values, last, bias, ROWS: tl.constexpr, HIDDEN: tl.constexpr):
    """The output layer, [ROWS] fp32; without a hidden layer the first is the last, and all but its column 0 is zero."""
    total = tl.zeros([ROWS], tl.float32)
    if HIDDEN == 0:
        return total + tl.sum(values.zs[0][0], 1)
    else:
        for o in tl.static_range(len(last)):
            total += tl.sum(values.hs[HIDDEN - 1][o] * last[o][None, :], 1)
        return total + bias
