"""Backward through the layers of one tile: from the gradient of the scores to that of the behaviours.

dz2 = (ds w3) act'(z2)        dz1 = (W2^T dz2) act'(z1)        dW2 += dz2 h1^T
dk_t = A_i^T dz1 (+ w_t g)    dA_i = sum_t dz1 k_t^T           dc_i = sum_t dz1
grouped: dWk' += dz1 k^T      dWp += dz1 (q k)^T               dq_i += sum_t k_t (Wp^T dz1)
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.activations import gradient
from din_kernels.backends.triton.arithmetic import (
    add_outer,
    add_row_groups,
    column_sums,
    multiply_transposed,
    repeat_rows,
    select_rows,
)
from din_kernels.backends.triton.blocks import add_vectors, static, to_dtype, zero_matrix, zero_rows
from din_kernels.backends.triton.local_activation.tile import load_last, times_query


class WeightGrads(NamedTuple):
    """Transposed gradients of weights that a program keeps over all its tiles, fp32."""

    weight_k: tuple  # [in width, out width] per pair; nothing for outer, as the next
    weight_qk: tuple
    layers: tuple  # per hidden layer above the first, from the last to the second
    bias_last: tl.tensor


class GroupGrads(NamedTuple):
    """Gradients of a group's candidates over its tiles, fp32."""

    query: tuple  # the part through Wp, [GROUP, width] per span of D
    term: tuple  # dc, [GROUP, width] per span of H1
    a: tuple  # dA^T where folded, [in width, out width] per pair
    residual: tl.tensor  # see backward.without_residual, [GROUP]


@triton.jit
def zero_weight_grads(mlp, UNIT: tl.constexpr):
    """WeightGrads before the first tile."""
    weight_k = ()
    weight_qk = ()
    if mlp.weight_k is not None:
        weight_k = zero_matrix(static(UNIT.d_spans), static(UNIT.layers[0]))
        weight_qk = zero_matrix(static(UNIT.d_spans), static(UNIT.layers[0]))
    layers = ()
    HIDDEN: tl.constexpr = UNIT.hidden
    for i in tl.static_range(HIDDEN - 1):
        matrix = zero_matrix(static(UNIT.layers[HIDDEN - 2 - i]), static(UNIT.layers[HIDDEN - 1 - i]))
        layers = layers + (matrix,)
    return WeightGrads(weight_k, weight_qk, layers, tl.zeros([], tl.float32))


@triton.jit
def zero_group_grads(UNIT: tl.constexpr, TILE: tl.constexpr):
    """GroupGrads before a group's first tile."""
    GROUP: tl.constexpr = TILE.group
    query = zero_rows(GROUP, static(UNIT.d_spans))
    term = zero_rows(GROUP, static(UNIT.layers[0]))
    a = ()
    if TILE.folded:
        a = zero_matrix(static(UNIT.d_spans), static(UNIT.layers[0]))
    return GroupGrads(query, term, a, tl.zeros([GROUP], tl.float32))


# --- the layers above the first ---------------------------------------------------------------------------------------


@triton.jit
def through_last(ds, values, mlp, inside, zero, part, UNIT: tl.constexpr, PASS: tl.constexpr):
    """Gradient of what the output layer takes, [ROWS, width] per span, and its weight's into `part`."""
    dh = ()
    if UNIT.hidden == 0:
        dh = (tl.where((tl.arange(0, 16) == 0)[None, :], ds[:, None], 0.0),)
    else:
        weight = load_last(mlp, zero, UNIT)
        if PASS.stop < 0:
            d_weight = ()
            for o in tl.static_range(len(weight)):
                d_weight = d_weight + (ds[:, None] * values.hs[UNIT.hidden - 1][o],)
            sums = column_sums(d_weight, inside)
            add_vectors(part + PASS.parts.weight_last, sums, static(UNIT.layers[UNIT.hidden - 1]))
        for o in tl.static_range(len(weight)):
            dh = dh + (ds[:, None] * weight[o][None, :],)
    return dh


@triton.jit
def through_activation(zs, dh, params, UNIT: tl.constexpr):
    """dz per span, and per span the activation's summands."""
    ACTIVATION: tl.constexpr = UNIT.activation
    dz = ()
    summands = ()
    for o in tl.static_range(len(zs)):
        here, own = gradient(zs[o], dh[o], params[o], ACTIVATION, UNIT.fast)
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
        at = PASS.parts.layers[LAYER].sums + j * UNIT.widths[LAYER]
        add_vectors(part + at, column_sums(this, inside), static(UNIT.layers[LAYER]))


@triton.jit
def through_layers(
    ds,  # [ROWS] fp32
    values,  # tile.Values
    kept,  # tile.Kept
    mlp,
    inside,  # [ROWS]: pairs that count in sums
    zero,  # see blocks.unseen_zero
    grads,  # WeightGrads.layers
    part,  # [size] fp32, of this program: takes this tile's sums over pairs
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    PASS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """dz1, and grads with this tile's; no further down than hidden layer `stop`, of which the sums alone are made.

    Sums over pairs, vectors, are added in memory at once: kept across the loop, the five of Dice's two layers would
    take some 50 registers of every thread.
    """
    ROWS: tl.constexpr = TILE.group * TILE.length
    PRECISION: tl.constexpr = TILE.precision
    HIDDEN: tl.constexpr = UNIT.hidden
    STOP: tl.constexpr = PASS.stop
    dz = through_last(ds, values, mlp, inside, zero, part, UNIT, PASS)
    out = ()
    for layer in tl.static_range(HIDDEN - 1, -1, -1):
        if layer >= STOP:
            # Down to this layer's h, and through its activation.
            dh = dz
            if layer < HIDDEN - 1:
                dh = to_dtype(dz, DTYPE)
                dh = multiply_transposed(dh, kept.layers[layer + 1], ROWS, static(UNIT.layers[layer]), PRECISION)
            dz, summands = through_activation(values.zs[layer], dh, values.params[layer], UNIT)
            # Dice's batch statistics give rows that are not there a gradient too.
            dz = select_rows(inside, dz)
            # Sums over the pairs, and the gradient of the layer's weight; the first layer's are made elsewhere.
            if STOP < 0 or STOP == layer:
                add_sums(summands, inside, part, layer, UNIT, PASS)
            if layer > 0 and STOP < 0:
                bias_at = PASS.parts.layers[layer].bias
                add_vectors(part + bias_at, column_sums(dz, inside), static(UNIT.layers[layer]))
                below = to_dtype(values.hs[layer - 1], DTYPE)
                out = out + (add_outer(grads[HIDDEN - 1 - layer], below, to_dtype(dz, DTYPE), PRECISION),)
    if STOP >= 0:
        out = grads
    return dz, out


# --- the first layer --------------------------------------------------------------------------------------------------


@triton.jit
def through_first(
    dz,  # [ROWS, width] fp32 per span of H1
    values,  # tile.Values
    kept,  # tile.Kept
    a,  # A_i^T where folded, else Wk'^T
    grads,  # WeightGrads
    own,  # GroupGrads
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """dk [ROWS, width] fp32 per span of D without the pooled part; WeightGrads and GroupGrads with this tile's."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    ROWS: tl.constexpr = TILE.group * TILE.length
    LENGTH: tl.constexpr = TILE.length
    PRECISION: tl.constexpr = TILE.precision
    term = add_row_groups(own.term, dz, LENGTH)
    dz = to_dtype(dz, DTYPE)
    dk = multiply_transposed(dz, a, ROWS, D_SPANS, PRECISION)
    query, da, weight_k, weight_qk = own.query, own.a, grads.weight_k, grads.weight_qk
    if TILE.folded:
        da = add_outer(da, values.k, dz, PRECISION)
    else:
        weight_k = add_outer(weight_k, values.k, dz, PRECISION)
        weight_qk = add_outer(weight_qk, times_query(values.k, values.q, LENGTH), dz, PRECISION)
        # Through q k: its gradient goes to k by q, and to q by k.
        by_product = multiply_transposed(dz, kept.weight_qk, ROWS, D_SPANS, PRECISION)
        each_q = repeat_rows(values.q, LENGTH)
        through_k = ()
        through_q = ()
        for b in tl.static_range(len(dk)):
            through_k = through_k + (dk[b] + each_q[b].to(tl.float32) * by_product[b],)
            through_q = through_q + (values.k[b].to(tl.float32) * by_product[b],)
        dk = through_k
        query = add_row_groups(query, through_q, LENGTH)
    weights = WeightGrads(weight_k, weight_qk, grads.layers, grads.bias_last)
    return dk, weights, GroupGrads(query, term, da, own.residual)
