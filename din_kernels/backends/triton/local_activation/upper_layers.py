"""Gradients of the layers above the first, over all pairs:

dW_l' += dz_l h_(l-1)^T    db_l' += dz_l    dw_last' += ds h_last    db_last' += ds
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.arithmetic import add_all_rows, add_outer, add_weighted_rows
from din_kernels.backends.triton.blocks import (
    load_rows,
    static,
    store_matrix,
    store_vectors,
    to_dtype,
)
from din_kernels.backends.triton.local_activation.descent import descend, normalizer_of, residual_of
from din_kernels.backends.triton.local_activation.first_layer import resumed_matrix
from din_kernels.backends.triton.local_activation.tile import (
    candidates_of,
    chunk_of,
    keep_weights,
    open_group,
    pairs_of,
    part_of,
    within,
)


class UpperGrads(NamedTuple):
    """What a program keeps over all its tiles, fp32; of rows the sum counts."""

    weights: tuple  # per hidden layer above the first: transposed, [in width, out width] per pair of spans
    biases: tuple  # the same: [16, width] per span
    weight_last: tuple  # [16, width] per span
    bias_last: tl.tensor  # [ROWS]


@triton.jit
def add_columns(total, x, TILE: tl.constexpr):
    """total [16, width] per span with the sum over the rows of x."""
    out = ()
    if x[0].dtype == tl.float32:
        row = tl.arange(0, 16)[:, None]
        for o in tl.static_range(len(x)):
            out = out + (total[o] + tl.where(row == 0, tl.sum(x[o], 0)[None, :], 0.0),)
    else:
        PRECISION: tl.constexpr = TILE.precision
        out = add_all_rows(total, x, PRECISION)
    return out


@triton.jit
def add_tile(total, hs, dzs, ds, UNIT: tl.constexpr, TILE: tl.constexpr):
    """UpperGrads with a tile's."""
    HIDDEN: tl.constexpr = UNIT.hidden
    PRECISION: tl.constexpr = TILE.precision
    weights = ()
    biases = ()
    for layer in tl.static_range(1, HIDDEN):
        weights = weights + (add_outer(total.weights[layer - 1], hs[layer - 1], dzs[layer], PRECISION),)
        biases = biases + (add_columns(total.biases[layer - 1], dzs[layer], TILE),)
    last = hs[HIDDEN - 1]
    if last[0].dtype == tl.bfloat16:
        weight_last = add_weighted_rows(total.weight_last, ds, last, PRECISION)
    else:
        weighted = ()
        for o in tl.static_range(len(last)):
            weighted = weighted + (ds[:, None] * last[o].to(tl.float32),)
        weight_last = add_columns(total.weight_last, weighted, TILE)
    return UpperGrads(weights, biases, weight_last, total.bias_last + ds)


@triton.jit
def start_row(pointer, resumed, SPANS: tl.constexpr):
    """A vector [width] per span in row 0 of [16, width]: what was stored there in the chunk before, else zeros."""
    out = ()
    row = tl.arange(0, 16)[:, None]
    for o in tl.static_range(len(SPANS.width)):
        column = tl.arange(0, SPANS.width[o])[None, :]
        inside = (row == 0) & (column < SPANS.valid[o] * resumed)
        out = out + (tl.load(pointer + SPANS.start[o] + column + row * 0, mask=inside, other=0.0),)
    return out


@triton.jit
def row_sums(x):
    """Sums over the rows, [width] per span."""
    out = ()
    for o in tl.static_range(len(x)):
        out = out + (tl.sum(x[o], 0),)
    return out


@triton.jit(do_not_specialize=["first", "last", "splits", "turn", "resumed"])
def upper_layers_kernel(
    inputs,  # arguments.Inputs
    given,  # arguments.Given
    parts,  # [programs, size] fp32, as arguments.UpperPlaces says
    room,  # arguments.Room
    first,  # candidates first .. last of Q
    last,
    splits,
    turn,  # 0 or 1, in turns from chunk to chunk
    resumed,  # 1 where the program adds to what it stored before, else 0
    scale,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    PASS: tl.constexpr,
    TO: tl.constexpr,
):
    """One part per program."""
    DTYPE: tl.constexpr = inputs.history.tables[0].dtype.element_ty
    GROUP: tl.constexpr = TILE.group
    ROWS: tl.constexpr = TILE.group * TILE.length
    LENGTH: tl.constexpr = TILE.length
    HIDDEN: tl.constexpr = UNIT.hidden
    KNOWN: tl.constexpr = room.layers is not None
    where = inputs.where
    part = parts + tl.program_id(0).to(tl.int64) * TO.size
    weights = ()
    biases = ()
    for layer in tl.static_range(1, HIDDEN):
        before = resumed_matrix(
            part + TO.weights[layer - 1],
            resumed,
            static(UNIT.layers[layer - 1]),
            static(UNIT.layers[layer]),
            UNIT.widths[layer - 1],
        )
        weights = weights + (before,)
        biases = biases + (start_row(part + TO.biases[layer - 1], resumed, static(UNIT.layers[layer])),)
    TOP: tl.constexpr = UNIT.layers[HIDDEN - 1]
    row = tl.arange(0, ROWS)
    alone = tl.load(part + TO.bias_last + row * 0, mask=row < resumed, other=0.0)
    total = UpperGrads(weights, biases, start_row(part + TO.weight_last, resumed, TOP), alone)
    if not KNOWN:
        kept = keep_weights(inputs.mlp, UNIT, TILE, HIDDEN, DTYPE)
    first, last, start, end = chunk_of(room.chunk, first, last)
    for work in range(tl.program_id(0), tl.cdiv(last - first, GROUP) * splits, tl.num_programs(0)):
        number, split = work // splits, work % splits
        if KNOWN:
            whole = candidates_of(tl.cast(number, tl.int32), first, last, where, GROUP)
        else:
            whole, a = open_group(tl.cast(number, tl.int32), first, last, inputs, kept, UNIT, TILE, DTYPE)
            normalizer = normalizer_of(given, where, whole, UNIT, TILE, PASS.softmax)
        group = within(whole, start, end)
        residual = residual_of(group, room, turn, PASS)
        t_first, t_last = part_of(group, split, splits, LENGTH)
        for t0 in range(t_first, t_last, LENGTH):
            pairs = pairs_of(group, t0, where, TILE)
            dzs = ()
            hs = ()
            if KNOWN:
                slot = pairs.place - start
                for layer in tl.static_range(HIDDEN):
                    at = room.layers + PASS.room.h[layer]
                    hs = hs + (load_rows(at, PASS.room.stride, slot, pairs.valid, static(UNIT.layers[layer])),)
                    dz = ()
                    if layer > 0:
                        at = room.layers + PASS.room.dz[layer]
                        dz = load_rows(at, PASS.room.stride, slot, pairs.valid, static(UNIT.layers[layer]))
                    dzs = dzs + (dz,)
                ds = tl.load(room.ds + slot, mask=pairs.valid, other=0.0)
            else:
                made = descend(
                    inputs,
                    given,
                    kept,
                    a,
                    whole,
                    pairs,
                    t0,
                    (splits == 1) & (group.count == whole.count),
                    normalizer,
                    residual,
                    scale,
                    part,
                    room,
                    start,
                    UNIT,
                    TILE,
                    PASS,
                )
                residual = made.residual
                dzs, ds = made.dzs, made.ds
                # Rounded as where they are known.
                for layer in tl.static_range(HIDDEN):
                    hs = hs + (to_dtype(made.hs[layer], DTYPE),)
            total = add_tile(total, hs, dzs, ds, UNIT, TILE)
    for layer in tl.static_range(1, HIDDEN):
        store_matrix(
            part + TO.weights[layer - 1],
            UNIT.widths[layer - 1],
            total.weights[layer - 1],
            static(UNIT.layers[layer - 1]),
            static(UNIT.layers[layer]),
        )
        store_vectors(part + TO.biases[layer - 1], row_sums(total.biases[layer - 1]), static(UNIT.layers[layer]))
    store_vectors(part + TO.weight_last, row_sums(total.weight_last), TOP)
    tl.store(part + TO.bias_last, tl.sum(total.bias_last, 0))
