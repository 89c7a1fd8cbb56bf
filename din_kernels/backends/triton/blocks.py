"""Matrices as tuples of power-of-two blocks, so that a width of 80 is held as 64 + 16 and not as 128.

A dimension of 80 columns, then one of 36:

    column   0                                 64       80          0                32   36    48
             +---------------------------------+--------+           +----------------+----+-----+
             |             block 0             | block 1|           |    block 0     | block 1  |
             +---------------------------------+--------+           +----------------+----+-----+
    start    0                                 64                   0                32
    width    64                                16                   32               16
    valid    64                                16                   32               4

A vector is one block per span, a matrix a tuple of such tuples, [row block][column block]. All loops here unroll; the
tuples never exist on the GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton import INTERPRETED

LEAST, MOST = 16, 64
ON_INTERPRETER = tl.constexpr(INTERPRETED)
# Triton 3.6 passes a tuple on as a constexpr only where it is said to be one, also if it comes out of a constexpr.
static = (lambda value: value) if INTERPRETED else tl.constexpr


class Spans(NamedTuple):
    """How a dimension is cut: block o holds columns start[o] .. start[o] + valid[o] in a width of width[o].

    Only the last block of a dimension can be wider than what it holds. The fields are tuples, and not this a tuple of
    spans, since Triton 3.6 forgets the names of what it takes out of a constexpr tuple.
    """

    start: tuple[int, ...]
    width: tuple[int, ...]  # powers of two of at least 16, the least that a tensor core takes
    valid: tuple[int, ...]


def spans(size: int, start: int = 0, most: int = MOST) -> Spans:
    """Spans that cover `size` columns from `start` on: 80 as 64 + 16, 36 as 32 + 16 (12 of it empty)."""
    starts, widths, valid, end = [], [], [], start + size
    while start < end:
        left = -(-(end - start) // LEAST) * LEAST
        width = min(most, 1 << (left.bit_length() - 1))
        starts.append(start)
        widths.append(width)
        valid.append(min(width, end - start))
        start += width
    return Spans(tuple(starts), tuple(widths), tuple(valid))


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """x in DTYPE, to the nearest. The interpreter would cut fp32 off to bf16, so it adds half a unit first."""
    if ON_INTERPRETER and DTYPE == tl.bfloat16 and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        # The lower half is cleared: for a 0 it would be a denormal, which the interpreter takes for 2^-126.
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(DTYPE)


@triton.jit
def to_dtype(x, DTYPE: tl.constexpr):
    """Every block of x in DTYPE."""
    out = ()
    for o in tl.static_range(len(x)):
        out = out + (narrow(x[o], DTYPE),)
    return out


@triton.jit
def unseen_zero(counter):
    """0, made of a loop's counter that is never negative.

    A load whose address holds this zero is made anew each time round the loop, since the compiler knows no better: it
    keeps neither the value nor the addresses. 80 channels of one vector, in the layout of a tensor core's result, take
    20 registers of every thread. The zero is a multiple of 64, so that loads stay as wide.
    """
    return tl.minimum(counter, 0) * 64


# --- zeros ------------------------------------------------------------------------------------------------------------


@triton.jit
def zero_vectors(SPANS: tl.constexpr):
    """fp32 zeros [width] per span."""
    out = ()
    for o in tl.static_range(len(SPANS.width)):
        out = out + (tl.zeros([tl.constexpr(SPANS.width[o])], tl.float32),)
    return out


@triton.jit
def zero_rows(ROWS: tl.constexpr, SPANS: tl.constexpr):
    """fp32 zeros [ROWS, width] per span."""
    out = ()
    for o in tl.static_range(len(SPANS.width)):
        out = out + (tl.zeros([ROWS, tl.constexpr(SPANS.width[o])], tl.float32),)
    return out


@triton.jit
def zero_matrix(IN: tl.constexpr, OUT: tl.constexpr):
    """fp32 zeros [in width, out width] per pair of spans."""
    out = ()
    for i in tl.static_range(len(IN.width)):
        row = ()
        for o in tl.static_range(len(OUT.width)):
            row = row + (tl.zeros([tl.constexpr(IN.width[i]), tl.constexpr(OUT.width[o])], tl.float32),)
        out = out + (row,)
    return out


# --- vectors ----------------------------------------------------------------------------------------------------------


@triton.jit
def load_vectors(pointer, zero, SPANS: tl.constexpr, STEP: tl.constexpr, OTHER: tl.constexpr):
    """A vector as fp32 blocks, with OTHER beyond its end; STEP 0 repeats its one entry."""
    out = ()
    for o in tl.static_range(len(SPANS.width)):
        column = tl.arange(0, SPANS.width[o])
        value = tl.load(pointer + (SPANS.start[o] + column + zero) * STEP, mask=column < SPANS.valid[o], other=OTHER)
        out = out + (value.to(tl.float32),)
    return out


@triton.jit
def store_vectors(pointer, values, SPANS: tl.constexpr):
    """Stores a vector given as blocks."""
    for o in tl.static_range(len(SPANS.width)):
        column = tl.arange(0, SPANS.width[o])
        tl.store(pointer + SPANS.start[o] + column, values[o], mask=column < SPANS.valid[o])


@triton.jit
def add_vectors(pointer, values, SPANS: tl.constexpr):
    """Adds to a vector that this program alone writes.

    The sum is atomic though nobody else adds: one thread adds to an entry, in the order of the program, so sums are the
    same bits each time. A load and a store may be given layouts of their own, and one thread would then read what
    another wrote.
    """
    for o in tl.static_range(len(SPANS.width)):
        column = tl.arange(0, SPANS.width[o])
        tl.atomic_add(pointer + SPANS.start[o] + column, values[o], mask=column < SPANS.valid[o], sem="relaxed")


# --- matrices, [out, stride] in memory, as torch.nn.Linear keeps its weight -------------------------------------------


@triton.jit
def load_block(
    pointer,  # [out, stride]
    stride,
    zero,  # see unseen_zero
    IN: tl.constexpr,
    FROM: tl.constexpr,
    OUT: tl.constexpr,
    TO: tl.constexpr,
):
    """Block (FROM, TO) of the transpose of a weight, [in width, out width]; zero beyond."""
    source, target = tl.arange(0, IN.width[FROM]), tl.arange(0, OUT.width[TO])
    inside = (source < IN.valid[FROM])[:, None] & (target < OUT.valid[TO])[None, :]
    at = (OUT.start[TO] + target)[None, :] * stride + (IN.start[FROM] + source + zero)[:, None]
    return tl.load(pointer + at, mask=inside, other=0.0)


@triton.jit
def load_matrix(pointer, stride, IN: tl.constexpr, OUT: tl.constexpr, DTYPE: tl.constexpr):
    """The transpose of a weight as blocks, see load_block."""
    out = ()
    for i in tl.static_range(len(IN.width)):
        row = ()
        for o in tl.static_range(len(OUT.width)):
            row = row + (narrow(load_block(pointer, stride, 0, IN, i, OUT, o), DTYPE),)
        out = out + (row,)
    return out


@triton.jit
def store_matrix(
    pointer,  # [out, stride]
    stride,
    values,  # [in width, out width] per pair
    IN: tl.constexpr,
    OUT: tl.constexpr,
):
    """Stores the transpose of a matrix given as blocks."""
    for i in tl.static_range(len(IN.width)):
        for o in tl.static_range(len(OUT.width)):
            source, target = tl.arange(0, IN.width[i]), tl.arange(0, OUT.width[o])
            inside = (source < IN.valid[i])[:, None] & (target < OUT.valid[o])[None, :]
            at = (OUT.start[o] + target)[None, :] * stride + (IN.start[i] + source)[:, None]
            tl.store(pointer + at, narrow(values[i][o], pointer.dtype.element_ty), mask=inside)


# --- rows -------------------------------------------------------------------------------------------------------------


@triton.jit
def load_rows(
    pointer,  # [n, stride]
    stride,
    row,  # [rows] int64
    inside,  # [rows]
    SPANS: tl.constexpr,
):
    """Rows as blocks [rows, width] of the pointer's dtype; zero where not inside."""
    out = ()
    for o in tl.static_range(len(SPANS.width)):
        column = tl.arange(0, SPANS.width[o])
        mask = inside[:, None] & (column < SPANS.valid[o])[None, :]
        out = out + (
            tl.load(pointer + row[:, None] * stride + (SPANS.start[o] + column)[None, :], mask=mask, other=0.0),
        )
    return out


@triton.jit
def store_rows(
    pointer,  # [n, stride]
    stride,
    row,  # [rows] int64
    inside,  # [rows]
    values,  # [rows, width] per span
    SPANS: tl.constexpr,
):
    """Stores rows given as blocks, those inside alone."""
    for o in tl.static_range(len(SPANS.width)):
        column = tl.arange(0, SPANS.width[o])
        mask = inside[:, None] & (column < SPANS.valid[o])[None, :]
        at = row[:, None] * stride + (SPANS.start[o] + column)[None, :]
        tl.store(pointer + at, narrow(values[o], pointer.dtype.element_ty), mask=mask)
