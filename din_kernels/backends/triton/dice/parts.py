"""How sums over all rows come together: lanes, then programs, each in a fixed order.

    lanes [LANES] --> the program's scratch --> columns [C], its part --> parts of all programs --> the result

A program writes its lanes to memory and reads them by column, since a column's lanes are apart; it then takes a ticket,
and the program with the last one adds the parts of all. So the result is there without another launch, and its bits do
not depend on the order in which programs end.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_planes(
    out,  # [planes, step]
    values,  # [n] each
    at,  # [n]
    inside,  # [n]
    STEP: tl.constexpr,
):
    """One plane after the other."""
    for plane in tl.static_range(len(values)):
        tl.store(out + plane * STEP + at, values[plane], mask=inside)


@triton.jit
def takes_last_ticket(
    ticket,  # [] int64, 0 before the first program
):
    """Whether all other programs have written their parts."""
    tl.debug_barrier()
    before = tl.atomic_add(ticket, tl.cast(1, tl.int64), sem="acq_rel")
    return before == tl.num_programs(0) * tl.num_programs(1) - 1


@triton.jit
def summed(
    parts,  # [count, ..., C], from the plane that is wanted
    count,
    column,  # [COLUMNS]
    STEP: tl.constexpr,  # from one part to the next
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The sum of parts, [COLUMNS]."""
    part = tl.arange(0, CHUNK)
    total = tl.zeros([CHUNK, column.shape[0]], tl.float32)
    for start in range(0, count, CHUNK):
        here = (start + part < count)[:, None] & (column < CHANNELS)[None, :]
        total += tl.load(parts + (start + part)[:, None] * STEP + column[None, :], mask=here, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def merged(
    parts,  # [count, 3 planes of n, mean, square, C]
    count,
    column,  # [COLUMNS]
    STEP: tl.constexpr,  # from one part to the next
    PLANE: tl.constexpr,  # from one of n, mean, square to the next
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Number of values, mean, and sum of squared differences from it, [COLUMNS] each.

    n = n1 + n2,  d = m2 - m1,  m = m1 + d n2 / n,  S = S1 + S2 + d^2 n1 n2 / n
    """
    part = tl.arange(0, CHUNK)
    n = tl.zeros([CHUNK, column.shape[0]], tl.float32)
    mean = tl.zeros([CHUNK, column.shape[0]], tl.float32)
    square = tl.zeros([CHUNK, column.shape[0]], tl.float32)
    for start in range(0, count, CHUNK):
        here = (start + part < count)[:, None] & (column < CHANNELS)[None, :]
        at = (start + part)[:, None] * STEP + column[None, :]
        more = tl.load(parts + at, mask=here, other=0.0)
        d = tl.load(parts + PLANE + at, mask=here, other=0.0) - mean
        share = more / tl.maximum(n + more, 1.0)
        square += tl.load(parts + 2 * PLANE + at, mask=here, other=0.0) + d * d * (n * share)
        mean += d * share
        n += more
    total = tl.sum(n, 0)
    near = tl.sum(n * mean, 0) / tl.maximum(total, 1.0)
    middle = near + tl.sum(n * (mean - near[None, :]), 0) / tl.maximum(total, 1.0)
    apart = mean - middle[None, :]
    return total, middle, tl.sum(square + n * apart * apart, 0)
