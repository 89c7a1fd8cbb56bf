"""What the kernels of `dice` share: a tile of rows and channels, and the parameters of its channels.

x [N, C]        COLUMNS        COLUMNS     ...        programs (row, column): the elementwise passes have one per
           +--------------+--------------+             tile; those that sum stay on the chip, and program (p, c) takes
     ROWS  |  tile (0, 0) |  tile (0, 1) |             tiles (p, c), (p + programs, c), ...
           +--------------+--------------+
     ROWS  |  tile (1, 0) |  tile (1, 1) |
           +--------------+--------------+
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from din_kernels.backends.triton.activations import Affine, Dice

COLUMNS = 64  # of a tile; 128 bytes of a row of bf16, the width of a memory transaction
ROWS = 64


class Batch(NamedTuple):
    """The rows of a call."""

    x: Tensor  # [N, C]
    mask: Tensor | None  # [N] uint8


class Channels(NamedTuple):
    """The parameters of all channels, [C] fp32 each."""

    alpha: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor


class Tile(NamedTuple):
    """A tile of rows."""

    value: tl.tensor  # [ROWS, COLUMNS] fp32; 0 where not valid
    at: tl.tensor  # offset of each entry
    valid: tl.tensor  # [ROWS]
    there: tl.tensor  # whether an entry is in x at all


@triton.jit
def columns_of(COLUMNS: tl.constexpr):
    """This program's columns [COLUMNS]."""
    return tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def load_tile(x, mask, start, column, rows, channels, ROWS: tl.constexpr):
    """Rows start * ROWS and on of x [N, C]."""
    row = start.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    if mask is not None:
        valid = valid & (tl.load(mask + row, mask=valid, other=0) > 0)
    at = row[:, None] * channels + column[None, :]
    within = (column < channels)[None, :]
    value = tl.load(x + at, mask=valid[:, None] & within, other=0.0).to(tl.float32)
    return Tile(value, at, valid, (row < rows)[:, None] & within)


@triton.jit
def load_channels(given, eps, column, channels):
    """The parameters of a tile's channels, [1, COLUMNS] each, as activations.py takes them."""
    inside = column < channels
    alpha = tl.load(given.alpha + column, mask=inside, other=0.0)
    mean = tl.load(given.mean + column, mask=inside, other=0.0)
    inverse = 1.0 / tl.sqrt(tl.load(given.var + column, mask=inside, other=1.0) + eps)
    affine = ()
    if given.weight is not None or given.bias is not None:
        weight, bias = tl.full(alpha.shape, 1.0, tl.float32), tl.zeros(alpha.shape, tl.float32)
        if given.weight is not None:
            weight = tl.load(given.weight + column, mask=inside, other=0.0)
        if given.bias is not None:
            bias = tl.load(given.bias + column, mask=inside, other=0.0)
        affine = Affine(weight[None, :], bias[None, :])
    return Dice(alpha[None, :], mean[None, :], inverse[None, :], affine, ())
