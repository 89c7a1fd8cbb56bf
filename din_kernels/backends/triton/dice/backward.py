"""Backward kernels of `dice`: sums over the rows, then dx; the formulas are in activations.py."""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.activations import Averages, Dice, dice_gradient
from din_kernels.backends.triton.blocks import narrow
from din_kernels.backends.triton.dice.tile import columns_of, load_channels, load_tile


@triton.jit(do_not_specialize=["rows"])
def sums_kernel(
    grad_y,  # [N, C]
    batch,  # tile.Batch
    given,  # tile.Channels
    parts,  # [programs, 3, C] fp32: sums of dalpha, du zhat (dweight), du (dbias)
    rows,  # N
    channels,  # C
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One part of the sums per program."""
    column = columns_of(COLUMNS)
    own = load_channels(given, eps, column, channels)
    d_alpha = tl.zeros([COLUMNS], tl.float32)
    d_weight, d_bias = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for start in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        at = tl.cast(start, tl.int32)
        tile = load_tile(batch.x, batch.mask, at, column, rows, channels, ROWS)
        dy = load_tile(grad_y, batch.mask, at, column, rows, channels, ROWS).value
        _, sums = dice_gradient(tile.value, dy, own, False)
        d_alpha += tl.sum(tl.where(tile.valid[:, None], sums.d_alpha, 0.0), 0)
        d_weight += tl.sum(tl.where(tile.valid[:, None], sums.du_zhat, 0.0), 0)
        d_bias += tl.sum(tl.where(tile.valid[:, None], sums.du, 0.0), 0)
    at = tl.program_id(0) * 3 * channels + column
    tl.store(parts + at, d_alpha, mask=column < channels)
    tl.store(parts + at + channels, d_weight, mask=column < channels)
    tl.store(parts + at + 2 * channels, d_bias, mask=column < channels)


@triton.jit
def load_averages(sums, own, column, channels):
    """The averages of g and g zhat from those of du zhat and du."""
    inside = column < channels
    du_zhat = tl.load(sums + channels + column, mask=inside, other=0.0)[None, :]
    du = tl.load(sums + 2 * channels + column, mask=inside, other=0.0)[None, :]
    if len(own.affine) > 0:
        du_zhat, du = own.affine.weight * du_zhat, own.affine.weight * du
    return Averages(du, du_zhat)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    grad_y,  # [N, C]
    batch,  # tile.Batch
    given,  # tile.Channels
    averages,  # [3, C] fp32: the sums of sums_kernel over the number of valid rows; None in evaluation
    grad_x,  # [N, C]
    rows,  # N
    channels,  # C
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx, and 0 in the rows that are not valid."""
    column = columns_of(COLUMNS)
    own = load_channels(given, eps, column, channels)
    if averages is not None:
        through = load_averages(averages, own, column, channels)
        own = Dice(own.alpha, own.mean, own.inverse, own.affine, through)
    tile = load_tile(batch.x, batch.mask, tl.program_id(0), column, rows, channels, ROWS)
    dy = load_tile(grad_y, batch.mask, tl.program_id(0), column, rows, channels, ROWS).value
    dx, _ = dice_gradient(tile.value, dy, own, False)
    tl.store(grad_x + tile.at, narrow(tl.where(tile.valid[:, None], dx, 0.0), grad_x.dtype.element_ty), mask=tile.there)
