"""The kernel of Dice's batch statistics in the unit."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.arithmetic import add_column_sums, select_rows
from din_kernels.backends.triton.blocks import store_vectors, unseen_zero, zero_vectors
from din_kernels.backends.triton.local_activation.tile import keep_weights, layers_of, open_group, pairs_of


class Moments(NamedTuple):
    """Moments of z over the pairs so far."""

    n: tl.tensor  # pairs, fp32
    mean: tuple  # [width] fp32 per span
    square: tuple  # sum of squared differences from the mean, [width] fp32 per span


@triton.jit
def merge_tile(moments, z, valid, SPANS: tl.constexpr):
    """`moments` with a tile of at least one pair.

    n = n1 + n2,  d = m2 - m1,  m = m1 + d n2 / n,  S = S1 + S2 + d^2 n1 n2 / n
    """
    here = tl.sum(valid.to(tl.float32), 0)
    sums = add_column_sums(zero_vectors(SPANS), select_rows(valid, z))
    share = here / (moments.n + here)
    mean = ()
    square = ()
    for o in tl.static_range(len(sums)):
        middle = sums[o] / here
        apart = tl.where(valid[:, None], z[o] - middle[None, :], 0.0)
        d = middle - moments.mean[o]
        mean = mean + (moments.mean[o] + d * share,)
        square = square + (moments.square[o] + tl.sum(apart * apart, 0) + d * d * moments.n * share,)
    return Moments(moments.n + here, mean, square)


@triton.jit(do_not_specialize=["first", "last"])
def statistics_kernel(
    inputs,  # arguments.Inputs
    count_parts,  # [programs] fp32
    mean_parts,  # [programs, H] fp32, H that of LAYER
    square_parts,  # [programs, H] fp32: sum of squared differences from the mean
    first,  # candidates first .. last
    last,
    LAYER: tl.constexpr,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Mean and variance of z of hidden layer LAYER over all valid pairs, one part per program; the layers below have
    theirs."""
    DTYPE: tl.constexpr = inputs.history.tables[0].dtype.element_ty
    SPANS: tl.constexpr = UNIT.layers[LAYER]
    kept = keep_weights(inputs.mlp, UNIT, TILE, LAYER, DTYPE)
    moments = Moments(tl.zeros([], tl.float32), zero_vectors(SPANS), zero_vectors(SPANS))
    for number in range(tl.program_id(0), tl.cdiv(last - first, TILE.group), tl.num_programs(0)):
        group, a = open_group(tl.cast(number, tl.int32), first, last, inputs, kept, UNIT, TILE, DTYPE)
        for t0 in range(0, tl.max(group.count, 0), TILE.length):
            pairs = pairs_of(group, t0, inputs.where, TILE)
            zero = unseen_zero(t0)
            values = layers_of(inputs, kept, a, group, pairs.row, pairs.valid, zero, UNIT, TILE, LAYER)
            # The longest history of the group reaches into the tile, so it has a pair.
            moments = merge_tile(moments, values.zs[LAYER], pairs.valid, SPANS)
    program = tl.program_id(0)
    tl.store(count_parts + program, moments.n)
    store_vectors(mean_parts + program * UNIT.widths[LAYER], moments.mean, SPANS)
    store_vectors(square_parts + program * UNIT.widths[LAYER], moments.square, SPANS)
