"""How the kernels of `dice` cut x [N, C] up, and the loads that they share.

x is read as one long row of N C numbers. REPEAT rows of it are a group, and lane e of a program holds number e of a
group, so the column of a lane never changes: what belongs to a channel is computed once per program, and sums over the
rows stay in a thread until the program ends. 80 channels fill 2000 of 2048 lanes, where a power of two of columns would
leave 48 of 128 idle.

                 lane 0                                                     LANES - 1
                 +----------+----------+----------+--   --+----------+------+
    group 0      | row 0    | row 1    | row 2    |  ...  | row 24   | idle |    REPEAT = 25 rows of C = 80
    group 1      | row 25   | row 26   | row 27   |  ...  | row 49   |      |
    ...          +----------+----------+----------+--   --+----------+------+    ROWS groups are a tile

A thread holds VECTOR numbers of every group, which REPEAT C is therefore a multiple of where it can be. Programs take
every P-th tile; the groups of the last, partial tile are taken one by one, and only they are checked against N. Where C
is greater than LANES, REPEAT is 1 and programs (p, b) hold columns b LANES and on.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton import cdiv, next_power_of_2


class Lanes(NamedTuple):
    """A program's lanes, [LANES] each."""

    at: tl.tensor  # offset in a group
    column: tl.tensor
    row: tl.tensor  # within the group
    used: tl.tensor


class Tile(NamedTuple):
    """Where the numbers of a tile are, [ROWS, LANES] each."""

    first: tl.tensor  # offset of its first number, int64
    at: tl.tensor  # offsets from there
    there: tl.tensor  # whether it is in x at all
    valid: tuple  # of one: whether its row is valid; () where all rows are


class Tiling(NamedTuple):
    """The shape of a launch."""

    repeat: int
    blocks: int  # programs side by side
    rows_of_tile: int
    constants: dict[str, int]  # of the kernels
    options: dict[str, Any]  # the compiler's


@functools.cache
def tiling(channels: int, vector: int, warps: int, rows: int) -> Tiling:
    """`vector` lanes a thread and `rows` groups a tile."""
    lanes = vector * 32 * warps
    aligned = vector // math.gcd(channels, vector)
    fit = lanes // channels
    repeat = max(1, fit // aligned * aligned or fit)
    columns = min(lanes, next_power_of_2(channels))
    constants = {
        "CHANNELS": channels,
        "REPEAT": repeat,
        "LANES": lanes,
        "COLUMNS": columns,
        "CHUNK": max(1, 4 * 32 * warps // columns),  # parts that are read at once, 4 numbers of each plane a thread
        "ROWS": rows,
        "VECTOR": vector,
    }
    return Tiling(repeat, cdiv(channels, lanes), repeat * rows, constants, {"num_warps": warps})


@triton.jit
def lanes_of(CHANNELS: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr):
    """This program's lanes."""
    at = tl.program_id(1) * LANES + tl.arange(0, LANES)
    return Lanes(at, at % CHANNELS, at // CHANNELS, at < REPEAT * CHANNELS)


@triton.jit
def tile_of(
    mask,  # [N] uint8, or None
    group,  # its first group
    rows,  # N
    lanes,
    WHOLE: tl.constexpr,  # whether all its groups are full
    CHANNELS: tl.constexpr,
    REPEAT: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """ROWS groups."""
    group = tl.cast(group, tl.int64)
    first = group * (REPEAT * CHANNELS)
    down = tl.arange(0, ROWS)[:, None]
    there = tl.broadcast_to(lanes.used[None, :], [ROWS, lanes.used.shape[0]])
    valid = ()
    if not WHOLE or mask is not None:
        row = down * REPEAT + lanes.row[None, :]  # from the first on, so that 32 bits hold it
        if not WHOLE:
            there = there & (row < (rows - group * REPEAT).to(tl.int32))
        held = there
        if mask is not None:
            held = there & (tl.load(mask + group * REPEAT + row, mask=there, other=0) > 0)
        valid = (held,)
    at = down * (REPEAT * CHANNELS) + lanes.at[None, :]
    return Tile(first, tl.max_contiguous(at, [1, VECTOR]), there, valid)


@triton.jit
def load_tile(x, tile):
    """Its numbers as fp32, 0 where not valid."""
    if len(tile.valid) > 0:
        return tl.load(x + tile.first + tile.at, mask=tile.valid[0], other=0.0).to(tl.float32)
    else:
        return tl.load(x + tile.first + tile.at, mask=tile.there, other=0.0).to(tl.float32)


@triton.jit
def only_valid(value, tile):
    """`value` [ROWS, LANES], and 0 where not valid, whatever it is there."""
    if len(tile.valid) > 0:
        value = tl.where(tile.valid[0], value, 0.0)
    return value


@triton.jit
def columns_of(block, COLUMNS: tl.constexpr):
    """The columns that the lanes of programs (p, block) hold, [COLUMNS]."""
    return block * COLUMNS + tl.arange(0, COLUMNS)
