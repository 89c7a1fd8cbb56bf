"""Forward kernels of `dice`: the batch statistics, then y; the formulas are in activations.py."""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.activations import dice
from din_kernels.backends.triton.blocks import narrow
from din_kernels.backends.triton.dice.tile import columns_of, load_channels, load_tile


@triton.jit(do_not_specialize=["rows"])
def statistics_kernel(
    batch,  # tile.Batch
    counts,  # [programs] fp32
    means,  # [programs, C] fp32
    squares,  # [programs, C] fp32: sum of squared differences from the mean
    rows,  # N
    channels,  # C
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Parts of mean and variance, merged as in local_activation/statistics.py."""
    column = columns_of(COLUMNS)
    n = tl.zeros([], tl.float32)
    mean, square = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for start in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        tile = load_tile(batch.x, batch.mask, tl.cast(start, tl.int32), column, rows, channels, ROWS)
        here = tl.sum(tile.valid.to(tl.float32), 0)
        middle = tl.sum(tile.value, 0) / tl.maximum(here, 1.0)
        apart = tl.where(tile.valid[:, None], tile.value - middle[None, :], 0.0)
        share, d = here / tl.maximum(n + here, 1.0), middle - mean
        square += tl.sum(apart * apart, 0) + d * d * n * share
        mean += d * share
        n += here
    at = tl.program_id(0) * channels + column
    tl.store(means + at, mean, mask=column < channels)
    tl.store(squares + at, square, mask=column < channels)
    tl.store(counts + tl.program_id(0), n)


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    batch,  # tile.Batch
    given,  # tile.Channels
    y,  # [N, C]
    rows,  # N
    channels,  # C
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y, and 0 in the rows that are not valid."""
    column = columns_of(COLUMNS)
    tile = load_tile(batch.x, batch.mask, tl.program_id(0), column, rows, channels, ROWS)
    out = dice(tile.value, load_channels(given, eps, column, channels), False)
    tl.store(y + tile.at, narrow(tl.where(tile.valid[:, None], out, 0.0), y.dtype.element_ty), mask=tile.there)
