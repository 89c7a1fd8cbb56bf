"""Backward through one tile: the forward once more, then from the gradient of the pooled rows to dz of every layer.

With g = dL/do_i, gw the gradient of the returned weights, dw_t = <g, k_t> + gw_t:

    ds  = scale dw_t  (none),   scale w_t (dw_t - sum_r w_r dw_r)  (softmax; sum_r w_r dw_r = <g, o_i> + sum_r w_r gw_r)
    dz2 = (ds w3) act'(z2)      dz1 = (W2^T dz2) act'(z1)

Three kernels go on from there: row_gradients.py, first_layer.py and upper_layers.py.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.activations import gradient
from din_kernels.backends.triton.arithmetic import (
    column_sums,
    dot_rows,
    multiply_transposed,
    multiply_vector,
    repeat_rows,
    repeat_vector,
    select_rows,
)
from din_kernels.backends.triton.blocks import (
    add_vectors,
    load_rows,
    static,
    store_rows,
    to_dtype,
    unseen_zero,
    zero_rows,
)
from din_kernels.backends.triton.local_activation.tile import layers_of, load_last, pairs_of, score_of

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
def residual_of(group, room, turn, PASS: tl.constexpr):
    """The residual before a group's first tile, [GROUP]: that of a history which the chunk before cut, else 0."""
    residual = group.skip.to(tl.float32) * 0.0
    if PASS.softmax and room.residual is not None:
        residual += tl.load(room.residual + turn + group.skip * 0, mask=group.skip > 0, other=0.0)
    return residual


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


# --- the layers -------------------------------------------------------------------------------------------------------


@triton.jit
def through_last(ds, mlp, zero, UNIT: tl.constexpr):
    """Gradient of what the output layer takes, [ROWS, width] per span."""
    dh = ()
    if UNIT.hidden == 0:
        dh = (tl.where((tl.arange(0, 16) == 0)[None, :], ds[:, None], 0.0),)
    else:
        weight = load_last(mlp, zero, UNIT)
        for o in tl.static_range(len(weight)):
            dh = dh + (ds[:, None] * weight[o][None, :],)
    return dh


@triton.jit
def through_activation(zs, hs, dh, params, UNIT: tl.constexpr):
    """dz per span, and per span the activation's summands."""
    ACTIVATION: tl.constexpr = UNIT.activation
    dz = ()
    summands = ()
    for o in tl.static_range(len(zs)):
        here, own = gradient(zs[o], hs[o], dh[o], params[o], ACTIVATION, UNIT.fast)
        dz = dz + (here,)
        summands = summands + (own,)
    return dz, summands


@triton.jit
def add_sums(summands, inside, part, LAYER: tl.constexpr, UNIT: tl.constexpr, PASS: tl.constexpr):
    """The activation's sums over pairs into `part`."""
    SUMS: tl.constexpr = PASS.sums
    for j in tl.static_range(SUMS):
        this = ()
        for o in tl.static_range(len(summands)):
            this = this + (summands[o][j],)
        at = PASS.sums_at[LAYER] + j * UNIT.widths[LAYER]
        add_vectors(part + at, column_sums(this, inside), static(UNIT.layers[LAYER]))


@triton.jit
def leave(room, dz, h, slot, inside, LAYER: tl.constexpr, UNIT: tl.constexpr, PASS: tl.constexpr):
    """Stores dz and h of a layer in their lines of the room, where there is one."""
    if room.layers is not None:
        STRIDE: tl.constexpr = PASS.room.stride
        store_rows(room.layers + PASS.room.dz[LAYER], STRIDE, slot, inside, dz, static(UNIT.layers[LAYER]))
        if UNIT.hidden > 0:
            store_rows(room.layers + PASS.room.h[LAYER], STRIDE, slot, inside, h, static(UNIT.layers[LAYER]))


@triton.jit
def through_layers(
    ds,  # [ROWS] fp32
    values,  # tile.Values
    kept,  # tile.Kept
    mlp,
    pairs,
    zero,  # see blocks.unseen_zero
    part,  # fp32, of this program: takes this tile's sums over pairs
    room,  # arguments.Room: takes dz and h of each layer as they come, so that few are in registers at once
    slot,  # [ROWS], the lines of the room
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    PASS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """dz per hidden layer from `stop` on, rounded as the products below take it; without a hidden layer dz of the only
    one.

    The activation's sums over pairs, vectors, are added in memory at once: kept across the loop, the five of Dice's two
    layers would take some 50 registers of every thread.
    """
    ROWS: tl.constexpr = TILE.group * TILE.length
    PRECISION: tl.constexpr = TILE.precision
    HIDDEN: tl.constexpr = UNIT.hidden
    STOP: tl.constexpr = PASS.stop
    inside = pairs.valid
    dh = through_last(ds, mlp, zero, UNIT)
    dzs = ()
    for layer in tl.static_range(HIDDEN - 1, -1, -1):
        if layer >= STOP:
            if layer < HIDDEN - 1:
                nothing = zero_rows(ROWS, static(UNIT.layers[layer]))
                dh = multiply_transposed(nothing, dzs[0], kept.layers[layer + 1], PRECISION)
            dz, summands = through_activation(values.zs[layer], values.hs[layer], dh, values.params[layer], UNIT)
            if UNIT.activation == "dice":
                # Batch statistics give rows that are not there a gradient too.
                dz = select_rows(inside, dz)
            if STOP < 0 or STOP == layer:
                add_sums(summands, inside, part, layer, UNIT, PASS)
            dzs = (to_dtype(dz, DTYPE),) + dzs
            if STOP < 0:
                leave(room, dzs[0], values.hs[layer], slot, inside, layer, UNIT, PASS)
    if HIDDEN == 0:
        dzs = (to_dtype(dh, DTYPE),)
        leave(room, dzs[0], dzs[0], slot, inside, 0, UNIT, PASS)
    return dzs


# --- a tile -----------------------------------------------------------------------------------------------------------


class Descent(NamedTuple):
    """What the descent through a tile leaves."""

    k: tuple  # of tile.Values, as the next two
    q: tuple
    hs: tuple
    g: tuple  # [GROUP, width] per span of D
    w: tl.tensor  # [ROWS] fp32, 0 where not attended
    ds: tl.tensor  # [ROWS] fp32
    dzs: tuple  # per hidden layer [ROWS, width] per span, in the dtype of the rows
    dz: tuple  # that of the first
    residual: tl.tensor  # see without_residual


@triton.jit
def descend(
    inputs,
    given,
    kept,
    a,  # A_i^T where folded, else Wk'^T
    group,  # the whole histories of the group
    pairs,
    t0,
    whole,  # whether all of the group's tiles come, in their order, in this loop
    normalizer,
    residual,
    scale,
    part,
    room,  # arguments.Room
    start,  # its first place
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    PASS: tl.constexpr,
):
    """The Descent of a tile."""
    DTYPE: tl.constexpr = inputs.history.tables[0].dtype.element_ty
    ROWS: tl.constexpr = TILE.group * TILE.length
    LENGTH: tl.constexpr = TILE.length
    HIDDEN: tl.constexpr = UNIT.hidden
    D_SPANS: tl.constexpr = UNIT.d_spans
    PRECISION: tl.constexpr = TILE.precision
    mlp = inputs.mlp
    # The forward once more.
    zero = unseen_zero(t0)
    values = layers_of(inputs, kept, a, group, pairs.row, pairs.valid, zero, UNIT, TILE, HIDDEN)
    bias_last = tl.load(mlp.vectors + UNIT.places.bias_last + zero)
    w = scale * score_of(values, load_last(mlp, zero, UNIT), bias_last, ROWS, HIDDEN)
    # ds, through the weighted sum and the softmax.
    g = load_rows(given.grad_pooled, UNIT.dim, group.candidate + zero, group.active, D_SPANS)
    if TILE.group == 1 and DTYPE != tl.float32:
        vectors = ()
        for b in tl.static_range(len(g)):
            vectors = vectors + (tl.reshape(g[b], [tl.constexpr(D_SPANS.width[b])]),)
        dw = multiply_vector(values.k, vectors, PRECISION)
    else:
        dw = dot_rows(repeat_rows(g, LENGTH), values.k, ROWS)
    if given.grad_pair_weights is not None:
        dw += load_pairs(given.grad_pair_weights, given.pair_begin, group, t0, pairs.attended, TILE)
    if PASS.softmax:
        w = tl.exp(w - repeat_vector(normalizer.shift, LENGTH))
        ends = (t0 + LENGTH >= group.count) & whole
        dw = w * (dw - repeat_vector(normalizer.delta, LENGTH))
        dw, residual = without_residual(dw, w, pairs.attended, residual, ends, TILE)
    ds = tl.where(pairs.attended, scale * dw, 0.0)
    w = tl.where(pairs.attended, w, 0.0)
    # Down the layers.
    slot = pairs.place - start
    if room.layers is not None and HIDDEN > 0 and PASS.stop < 0:
        tl.store(room.ds + slot, ds, mask=pairs.valid)
    dzs = through_layers(ds, values, kept, mlp, pairs, zero, part, room, slot, UNIT, TILE, PASS, DTYPE)
    return Descent(values.k, values.q, values.hs, g, w, ds, dzs, dzs[0], residual)
