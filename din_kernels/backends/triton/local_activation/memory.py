"""Shared memory of the unit's kernels, bounded from above, so that tiles shrink before a launch fails.

What Triton's compiler keeps there, found from compiled kernels: every matrix of weights whose product is made in the
loop, a second time where the backward multiplies by its transpose in another layout, or where fp32 is taken in parts;
rows, activations and gradients of a tile on their way to a product, at most twice at once. tools/triton_cubins.py holds
the bound against what it compiles.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from din_kernels.backends.triton.blocks import LEAST, MOST, spans

TERM_ROWS = 16  # candidates in a program of term_kernel, and of query_gradients_kernel
REDUCTIONS = 4096  # bytes: partial results of sums on their way between warps
FORWARD, ROWS, FIRST, UPPER = KINDS = ("forward", "rows", "first", "upper")  # the kernels that go over all pairs


class Shape(NamedTuple):
    """What of a launch decides how much shared memory it takes."""

    folded: bool
    group: int
    length: int
    num_stages: int
    num_warps: int
    precision: str  # of fp32 products


def padded(size: int) -> int:
    """Columns that the blocks of a width take."""
    return sum(spans(size).width)


def bound(columns: int, widths: tuple[int, ...], itemsize: int, kind: str, shape: Shape) -> int:
    """Bytes at most, of rows held in `columns` and hidden layers of `widths`, for one of KINDS.

    Every call makes c_i too, of TERM_ROWS candidates and a block of weights at a time.
    """
    inner = [padded(width) for width in widths]
    weights = columns * inner[0] * (1 if shape.folded else 2)
    weights += sum(below * above for below, above in zip(inner[:-1], inner[1:], strict=True))
    rows = shape.group * shape.length
    tile = rows * (columns + sum(inner))
    ordinary = itemsize == 4 and shape.precision == "ieee"  # no tensor core, so no second layout
    times = 2 if kind != FORWARD and not ordinary else 1
    if rows >= MOST:  # products of warp groups, which read one layout both ways; of fp32 in parts
        held = (1 if ordinary or itemsize == 2 else 2) * weights + times * tile
    elif kind != FORWARD and itemsize == 4 and shape.precision == "bf16x6":
        held = 3 * weights + tile  # three parts of 2 bytes in two layouts
    else:
        held = times * (weights + tile)
    term = TERM_ROWS * columns + 2 * MOST * MOST
    return itemsize * max(held + (shape.num_stages - 1) * rows * columns, term) + REDUCTIONS


def smaller(shape: Shape, folded: Shape, itemsize: int) -> Iterator[Shape]:
    """The shape, and what to try where it does not fit: shorter tiles, one stage, the folded path, fp32 products on the
    ordinary units, which keep one layout."""
    for start in (shape, folded) if not shape.folded else (shape,):
        yield start
        while start.group * start.length > LEAST:
            start = start._replace(length=start.length // 2)
            yield start
        if start.num_stages > 1:
            start = start._replace(num_stages=1)
            yield start
    if itemsize == 4 and start.precision != "ieee":
        yield start._replace(precision="ieee")


def fitting(
    columns: int, widths: tuple[int, ...], itemsize: int, kind: str, shape: Shape, folded: Shape, limit: int
) -> Shape:
    """The first of `smaller` that takes no more than `limit` bytes; at worst the last, which `refuses` tells."""
    for each in smaller(shape, folded, itemsize):
        if bound(columns, widths, itemsize, kind, each) <= limit:
            break
    return each


@functools.lru_cache(maxsize=256)
def refuses(dim: int, columns: int, widths: tuple[int, ...], itemsize: int, backward: bool, limit: int) -> str | None:
    """Why no tile fits, or None."""
    least = Shape(True, 1, LEAST, 1, 4, "ieee")
    needed = max(bound(columns, widths, itemsize, each, least) for each in (KINDS if backward else (FORWARD,)))
    if needed <= limit:
        return None
    return (
        f"D = {dim} and H = {widths} take up to {needed:,} bytes of shared memory, of which the chip has {limit:,}, "
        "even with the smallest tiles"
    )
