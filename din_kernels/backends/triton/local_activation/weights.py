"""Weights as the kernels take them: columns of one factor added up, and the affine part of an activation inside them.

sigmoid(z) = (1 + tanh(z / 2)) / 2, so a unit of sigmoids is one of tanh with other weights, and its activation one
instruction. With u = into z, t = act(u), and h = gain t + shift what the layer gives on:

    u1 = A' k + c'        W1' = into W1                b1' = into b1
    u2 = W2' t1 + b2'     W2' = into gain W2           b2' = into (b2 + shift sum of W2's columns)
    s  = w3' t2 + b3'     w3' = gain w3                b3' = b3 + shift sum of w3

    dW1 = into dW1'       dW2 = into (gain dW2' + shift db2' 1^T)       dw3 = gain dw3' + shift db3'
    db1 = into db1'       db2 = into db2'                               db3 = db3'

Scaling by a power of two costs no bit. In fp32, where exp is as good, into = gain = 1 and shift = 0.

Two flat buffers, made once a call: `matrices` in the dtype of the rows, `vectors` in fp32. Rows of a matrix begin at
multiples of 16 bytes, whatever D is:

    matrices   | Wq' [H1, D] | Wk' [H1, D] | Wp' [H1, D] | W2' [H2, H1] | ...      for outer Wq' alone comes first
    vectors    | b1' [H1] | b2' [H2] | ... | w_last' [H] | b_last' [1]
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from din_kernels.backends.triton import cdiv
from din_kernels.backends.triton.blocks import narrow


class Form(NamedTuple):
    """The activation that kernels compute, and the affine part around it."""

    activation: str
    into: float
    gain: float
    shift: float


def form_of(activation: str, dtype: torch.dtype, hidden: int) -> Form:
    """The form of the activation of `hidden` layers on rows of `dtype`."""
    if activation == "sigmoid" and dtype.itemsize == 2 and hidden:
        return Form("tanh", 0.5, 0.5, 0.5)
    return Form(activation, 1.0, 1.0, 0.0)


class WeightPlaces(NamedTuple):
    """Where the two buffers hold what; a stride per hidden layer, the first that of Wq', Wk' and Wp'."""

    weight_q: int
    weight_k: int
    weight_qk: int
    matrices: tuple[int, ...]  # per hidden layer; that of the first is weight_q
    strides: tuple[int, ...]
    matrix_size: int  # of all
    biases: tuple[int, ...]  # per hidden layer
    weight_last: int
    bias_last: int
    vector_size: int  # of all


@functools.lru_cache(maxsize=256)
def weight_places(dim: int, widths: tuple[int, ...], hidden: int, outer: bool) -> WeightPlaces:
    """The places for rows of D = `dim` and layers of `widths`; made once, since a launch of 10 us leaves no time."""
    ends = [0, 0]

    def take(buffer: int, count: int) -> int:
        start = ends[buffer]
        ends[buffer] += cdiv(count, 16) * 16
        return start

    strides = tuple(cdiv(each, 8) * 8 for each in (dim, *widths[: max(hidden, 1) - 1]))
    firsts = [take(0, widths[0] * strides[0]) for _ in range(1 if outer else 3)]
    firsts += firsts[:1] * (3 - len(firsts))
    matrices = (firsts[0], *(take(0, widths[at] * strides[at]) for at in range(1, hidden)))
    biases = tuple(take(1, width) for width in widths)
    weight_last, bias_last = take(1, widths[-1]), take(1, 1)
    return WeightPlaces(*firsts, matrices, strides, ends[0], biases, weight_last, bias_last, ends[1])


@triton.jit
def _row(pointer, row, stride, column, inside):
    return tl.load(pointer + row * stride + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _prepare_upper(
    weights,
    biases,
    matrices,
    vectors,
    row,  # of the layer, if it has so many
    LAYER: tl.constexpr,
    UNIT: tl.constexpr,
    INTO: tl.constexpr,
    GAIN: tl.constexpr,
    SHIFT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    BELOW: tl.constexpr = UNIT.widths[LAYER - 1]
    OUT: tl.constexpr = UNIT.widths[LAYER] if LAYER < UNIT.hidden else 1
    PLACES: tl.constexpr = UNIT.places
    DTYPE: tl.constexpr = matrices.dtype.element_ty
    if (row >= 0) & (row < OUT):
        column = tl.arange(0, COLUMNS)
        inside = column < BELOW
        weight = _row(weights[LAYER], row, BELOW, column, inside)
        bias = tl.load(biases[LAYER] + row).to(tl.float32) + SHIFT * tl.sum(weight, 0)
        if LAYER < UNIT.hidden:
            at = PLACES.matrices[LAYER] + row * PLACES.strides[LAYER] + column
            tl.store(matrices + at, narrow(INTO * GAIN * weight, DTYPE), mask=inside)
            tl.store(vectors + PLACES.biases[LAYER] + row, INTO * bias)
        else:
            tl.store(vectors + PLACES.weight_last + column, GAIN * weight, mask=inside)
            tl.store(vectors + PLACES.bias_last, bias)


@triton.jit
def prepare_kernel(
    weights,  # [out, in] each, as given
    biases,  # [out] each
    matrices,
    vectors,
    UNIT: tl.constexpr,
    FEATURES: tl.constexpr,
    INTO: tl.constexpr,
    GAIN: tl.constexpr,
    SHIFT: tl.constexpr,
    COLUMNS: tl.constexpr,  # a power of two that holds every row
):
    """One row of one layer a program: those of the first layer, of the second, ..., of the output layer."""
    DTYPE: tl.constexpr = matrices.dtype.element_ty
    DIM: tl.constexpr = UNIT.dim
    HIDDEN: tl.constexpr = UNIT.hidden
    PLACES: tl.constexpr = UNIT.places
    tl.static_assert(FEATURES == "concat" or FEATURES == "product" or FEATURES == "outer", "unknown feature set")
    FACTORS: tl.constexpr = 4 if FEATURES == "concat" else 3
    WIDE: tl.constexpr = 2 * DIM + DIM * DIM if FEATURES == "outer" else FACTORS * DIM
    column = tl.arange(0, COLUMNS)
    row = tl.program_id(0)
    if row < UNIT.widths[0]:
        inside = column < DIM
        by_q = _row(weights[0], row, WIDE, column, inside)
        at = row * PLACES.strides[0] + column
        if FEATURES != "outer":
            by_k = _row(weights[0], row, WIDE, DIM + column, inside)
            by_qk = _row(weights[0], row, WIDE, (FACTORS - 1) * DIM + column, inside)
            if FEATURES == "concat":
                by_difference = _row(weights[0], row, WIDE, 2 * DIM + column, inside)
                by_q += by_difference
                by_k -= by_difference
            tl.store(matrices + PLACES.weight_k + at, narrow(INTO * by_k, DTYPE), mask=inside)
            tl.store(matrices + PLACES.weight_qk + at, narrow(INTO * by_qk, DTYPE), mask=inside)
        tl.store(matrices + PLACES.weight_q + at, narrow(INTO * by_q, DTYPE), mask=inside)
        bias = tl.load(biases[0] + row).to(tl.float32)
        tl.store(vectors + PLACES.biases[0] + row, INTO * bias)
    first = UNIT.widths[0]
    for layer in tl.static_range(1, HIDDEN + 1):
        _prepare_upper(weights, biases, matrices, vectors, row - first, layer, UNIT, INTO, GAIN, SHIFT, COLUMNS)
        if layer < HIDDEN:
            first += UNIT.widths[layer]
