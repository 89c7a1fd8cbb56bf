"""Forward kernels of `dice`: the batch statistics, then y; the formulas are in gate.py."""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.blocks import narrow
from din_kernels.backends.triton.dice.gate import gate, line, load_channels
from din_kernels.backends.triton.dice.parts import merged, store_planes, takes_last_ticket
from din_kernels.backends.triton.dice.tile import columns_of, lanes_of, load_tile, only_valid, tile_of


@triton.jit
def merge_tile(n, mean, square, x, tile):
    """Statistics of each lane with a tile more, see parts.merged. n is one number while all rows are valid."""
    if len(tile.valid) > 0:
        here = tl.sum(tile.valid[0].to(tl.float32), 0)
    else:
        here = x.shape[0] * 1.0
    middle = tl.sum(x, 0) / tl.maximum(here, 1.0)
    apart = only_valid(x - middle[None, :], tile)
    d = middle - mean
    share = here / tl.maximum(n + here, 1.0)
    return n + here, mean + d * share, square + tl.sum(apart * apart, 0) + d * d * (n * share)


@triton.jit(do_not_specialize=["rows"])
def statistics_kernel(
    x,  # [N, C]
    mask,  # [N] uint8, or None
    count,  # [] int64, 0: a ticket, then the number of valid rows
    mean,  # [C] fp32
    var,  # [C] fp32, biased; 1 where no row is valid
    scratch,  # [programs, 3, REPEAT C] fp32
    parts,  # [programs, 3, C] fp32
    rows,  # N
    CHANNELS: tl.constexpr,
    REPEAT: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """n, mean and sum of squared differences of every lane, column and program, merged in turn."""
    GROUP: tl.constexpr = REPEAT * CHANNELS
    lanes = lanes_of(CHANNELS, REPEAT, LANES)
    program, programs = tl.program_id(0), tl.num_programs(0)
    tiles = rows // (REPEAT * ROWS)
    n = tl.zeros([], tl.float32) if mask is None else tl.zeros([LANES], tl.float32)
    middle, square = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)
    for at in range(program, tiles, programs):
        tile = tile_of(mask, at * ROWS, rows, lanes, True, CHANNELS, REPEAT, ROWS, VECTOR)
        n, middle, square = merge_tile(n, middle, square, load_tile(x, tile), tile)
    n += tl.zeros([LANES], tl.float32)
    for at in range(tiles * ROWS + program, tl.cdiv(rows, REPEAT), programs):
        tile = tile_of(mask, at, rows, lanes, False, CHANNELS, REPEAT, 1, VECTOR)
        n, middle, square = merge_tile(n, middle, square, load_tile(x, tile), tile)

    own, part = scratch + program * (3 * GROUP), parts + program * (3 * CHANNELS)
    store_planes(own, (n, middle, square), lanes.at, lanes.used, GROUP)
    tl.debug_barrier()
    column = columns_of(tl.program_id(1), COLUMNS)
    found = merged(own, REPEAT, column, CHANNELS, GROUP, CHANNELS, CHUNK)
    store_planes(part, found, column, column < CHANNELS, CHANNELS)
    if takes_last_ticket(count):
        for block in range(0, tl.num_programs(1)):
            finish(count, mean, var, parts, programs, columns_of(block, COLUMNS), CHANNELS, CHUNK)


@triton.jit
def finish(count, mean, var, parts, programs, column, CHANNELS: tl.constexpr, CHUNK: tl.constexpr):
    """Writes the results of statistics_kernel, from the parts of all programs."""
    total, middle, square = merged(parts, programs, column, 3 * CHANNELS, CHANNELS, CHANNELS, CHUNK)
    tl.store(mean + column, middle, mask=column < CHANNELS)
    tl.store(var + column, tl.where(total > 0, square / total, 1.0), mask=column < CHANNELS)
    tl.store(count, tl.max(total, 0).to(tl.int64))


@triton.jit
def activate_tile(x, y, tile, own, offset, gain, FAST: tl.constexpr):
    """y = x (offset + gain g), and 0 in the rows that are not valid."""
    value = load_tile(x, tile)
    _, g = gate(value, own, FAST)
    out = only_valid(value * (offset[None, :] + gain[None, :] * g), tile)
    tl.store(y + tile.first + tile.at, narrow(out, y.dtype.element_ty), mask=tile.there)


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    x,  # [N, C]
    mask,  # [N] uint8, or None
    given,  # gate.Parameters
    mean,  # [C] fp32
    var,  # [C] fp32
    y,  # [N, C]
    rows,  # N
    eps,
    FAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    REPEAT: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """y, tile by tile."""
    lanes = lanes_of(CHANNELS, REPEAT, LANES)
    own = load_channels(given, mean, var, eps, lanes.column, lanes.used, FAST)
    offset, gain = line(tl.load(given.alpha + lanes.column, mask=lanes.used, other=0.0), FAST)
    program, programs = tl.program_id(0), tl.num_programs(0)
    tiles = rows // (REPEAT * ROWS)
    for at in range(program, tiles, programs):
        tile = tile_of(mask, at * ROWS, rows, lanes, True, CHANNELS, REPEAT, ROWS, VECTOR)
        activate_tile(x, y, tile, own, offset, gain, FAST)
    for at in range(tiles * ROWS + program, tl.cdiv(rows, REPEAT), programs):
        tile = tile_of(mask, at, rows, lanes, False, CHANNELS, REPEAT, 1, VECTOR)
        activate_tile(x, y, tile, own, offset, gain, FAST)
