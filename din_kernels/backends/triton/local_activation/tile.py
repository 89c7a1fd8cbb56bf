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
from din_kernels.backends.triton.arithmetic import fused_multiply_add, multiply_add, multiply_wide, repeat_rows
from din_kernels.backends.triton.blocks import (
    load_block,
    load_matrix,
    load_rows,
    load_vectors,
    narrow,
    static,
    to_dtype,
    unseen_zero,
)

# --- which rows -------------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Consecutive candidates, [GROUP] each."""

    candidate: tl.tensor  # index
    present: tl.tensor  # whether there is one
    active: tl.tensor  # whether it has behaviours
    start: tl.tensor  # first position of the history
    place: tl.tensor  # where its pairs begin among all
    skip: tl.tensor  # behaviours before those that count here, see `within`
    count: tl.tensor  # number of behaviours up to the last that counts


class Pairs(NamedTuple):
    """A tile's pairs, [ROWS] each."""

    place: tl.tensor  # among all
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
    place = start
    if where.place is not None:
        place = tl.load(where.place + candidate, mask=present, other=0)
    return Group(candidate, present, present & (count > 0), start, place, tl.zeros([GROUP], tl.int32), count)


@triton.jit
def within(group, first, last):
    """The group's pairs at places first .. last alone."""
    skip = tl.minimum(tl.maximum(first - group.place, 0), group.count).to(tl.int32)
    count = tl.minimum(tl.maximum(last - group.place, 0), group.count).to(tl.int32)
    return Group(group.candidate, group.present, group.active, group.start, group.place, skip, count)


@triton.jit
def chunk_of(chunk, first, last):
    """Candidates and places of a chunk: those given and all places where there is none."""
    start = tl.zeros([], tl.int64)
    end = start + (1 << 62)
    if chunk is not None:
        first, last = tl.load(chunk).to(tl.int32), tl.load(chunk + 1).to(tl.int32)
        start, end = tl.load(chunk + 2), tl.load(chunk + 3)
    return first, last, start, end


@triton.jit
def work_of(order, first, last, splits, TILE: tl.constexpr, SHARED: tl.constexpr):
    """begin, end and step of this program's work: all programs in turns, or in order the users of this one."""
    begin, end, step = tl.program_id(0), tl.cdiv(last - first, TILE.group) * splits, tl.num_programs(0)
    if SHARED == "ordered":
        begin = tl.load(order.bounds + tl.program_id(0)).to(tl.int32)
        end, step = tl.load(order.bounds + tl.program_id(0) + 1).to(tl.int32), tl.num_programs(0) * 0 + 1
    return begin, end, step


@triton.jit
def part_of(group, split, splits, LENGTH: tl.constexpr):
    """Behaviours first .. last that one of `splits` programs takes of the group's longest history."""
    longest = tl.max(group.count, 0)
    start = tl.min(tl.where(group.count > group.skip, group.skip, longest), 0)
    each = tl.cdiv(tl.cdiv(longest - start, splits), LENGTH) * LENGTH
    first = start + split * each
    return first, min(first + each, longest)


@triton.jit
def pairs_of(group, t0, where, TILE: tl.constexpr):
    """The pairs of a group's tile at t0."""
    ROWS: tl.constexpr = TILE.group * TILE.length
    t = (t0 + tl.arange(0, TILE.length))[None, :]
    valid = tl.reshape((t >= group.skip[:, None]) & (t < group.count[:, None]), [ROWS])
    place = tl.reshape(group.place[:, None] + t, [ROWS])
    row = tl.reshape(group.start[:, None] + t, [ROWS])
    if where.row_index is not None:
        row = tl.load(where.row_index + row, mask=valid, other=0)
    attended = valid
    if where.row_mask is not None:
        attended = valid & (tl.load(where.row_mask + row, mask=valid, other=0) > 0)
    return Pairs(place, row, valid, attended)


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
    weight_qk: tuple  # Wp'^T where not folded
    layers: tuple  # weight^T per hidden layer; nothing for the first


@triton.jit
def keep_weights(mlp, UNIT: tl.constexpr, TILE: tl.constexpr, UP_TO: tl.constexpr, DTYPE: tl.constexpr):
    """The weights of hidden layers up to UP_TO, where there are so many."""
    PLACES: tl.constexpr = UNIT.places
    D_SPANS: tl.constexpr = UNIT.d_spans
    SPANS: tl.constexpr = UNIT.layers[0]
    weight_k = ()
    weight_qk = ()
    if not TILE.folded:
        weight_k = load_matrix(mlp.matrices + PLACES.weight_k, PLACES.strides[0], D_SPANS, SPANS, DTYPE)
        weight_qk = load_matrix(mlp.matrices + PLACES.weight_qk, PLACES.strides[0], D_SPANS, SPANS, DTYPE)
    layers = ((),)
    for layer in tl.static_range(1, min(UP_TO + 1, len(UNIT.widths))):
        matrix = load_matrix(
            mlp.matrices + PLACES.matrices[layer],
            PLACES.strides[layer],
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
    """A_i^T = Wk'^T + diag(q_i) Wp'^T, block by block, so that few of them are in registers at once.

    The weights are read anew for every candidate, from the L1 cache: kept, they would take 40 registers of each of 256
    threads.
    """
    IN: tl.constexpr = UNIT.d_spans
    OUT: tl.constexpr = UNIT.layers[0]
    PLACES: tl.constexpr = UNIT.places
    STRIDE: tl.constexpr = PLACES.strides[0]
    out = ()
    for i in tl.static_range(len(q)):
        column = tl.trans(q[i])
        row = ()
        for o in tl.static_range(len(OUT.width)):
            by_k = load_block(mlp.matrices + PLACES.weight_k, STRIDE, zero, IN, i, OUT, o)
            by_qk = load_block(mlp.matrices + PLACES.weight_qk, STRIDE, zero, IN, i, OUT, o)
            if DTYPE == tl.float32:
                row = row + (by_k + column * by_qk,)
            else:
                row = row + (fused_multiply_add(tl.broadcast_to(column, by_k.shape), by_qk, by_k, UNIT.fast),)
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
    hs: tuple  # the same behind the activation, as the next layer takes it: rounded below the last, fp32 there
    params: tuple  # per hidden layer and span the activation's parameters


@triton.jit
def load_last(mlp, zero, UNIT: tl.constexpr):
    """Weight of the layer that gives the score, where a hidden one is below it; loaded anew for every tile."""
    weight = ()
    if UNIT.hidden > 0:
        LAST: tl.constexpr = UNIT.layers[UNIT.hidden - 1]
        weight = load_vectors(mlp.vectors + UNIT.places.weight_last, zero, LAST, 1, 0.0)
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
        params = params + (own,)
        if layer + 1 < len(UNIT.steps):
            at = inputs.mlp.vectors + UNIT.places.biases[layer + 1]
            bias = load_vectors(at, zero, static(UNIT.layers[layer + 1]), 1, 0.0)
            z = multiply_wide(start_of(bias, ROWS), h, kept.layers[layer + 1], DTYPE, PRECISION)
            zs = zs + (z,)
            h = to_dtype(h, DTYPE)
        hs = hs + (h,)
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
