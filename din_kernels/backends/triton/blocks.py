"""Matrices as tuples of power-of-two blocks, so that a width of 80 is held as 64 + 16 and not as 128.

A span is (start, width, valid): columns start .. start + valid, held in a block of `width`, a power of two of at least
16 (the least that a tensor core takes). Only the last block of a dimension can be wider than what it holds. All loops
here unroll; the tuples never exist on the GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton import INTERPRETED

LEAST, MOST = 16, 64
_INTERPRETED = tl.constexpr(INTERPRETED)
# A tuple taken out of a constexpr tuple must be said to be constexpr again where a function takes it (Triton 3.6).
static = (lambda value: value) if INTERPRETED else tl.constexpr


def flat(several: tuple[tuple[int, int, int], ...]) -> tuple[int, ...]:
    """Spans as kernels take them, in a row: a tuple of tuples of tuples cannot be taken apart at compile time."""
    return tuple(number for span in several for number in span)


def spans(size: int, start: int = 0) -> tuple[tuple[int, int, int], ...]:
    """Spans that cover `size` columns from `start` on: 80 as 64 + 16, 36 as 32 + 16 (12 of it empty)."""
    result, end = [], start + size
    while start < end:
        left = -(-(end - start) // LEAST) * LEAST
        width = min(MOST, 1 << (left.bit_length() - 1))
        result.append((start, width, min(width, end - start)))
        start += width
    return tuple(result)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """x in DTYPE, to the nearest. The interpreter would cut fp32 off to bf16, so it adds half a unit first."""
    if _INTERPRETED and DTYPE == tl.bfloat16 and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        # What is left below is cleared: for a 0 it would be a denormal, which the interpreter takes for 2^-126.
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(DTYPE)


@triton.jit
def zero_vectors(SPANS: tl.constexpr):
    """fp32 zeros [width] per span."""
    out = ()
    for o in tl.static_range(len(SPANS) // 3):
        out = out + (tl.zeros([tl.constexpr(SPANS[3 * o + 1])], tl.float32),)
    return out


@triton.jit
def zero_matrix(IN: tl.constexpr, OUT: tl.constexpr):
    """fp32 zeros [in width, out width] per pair of spans."""
    out = ()
    for i in tl.static_range(len(IN) // 3):
        row = ()
        for o in tl.static_range(len(OUT) // 3):
            row = row + (tl.zeros([tl.constexpr(IN[3 * i + 1]), tl.constexpr(OUT[3 * o + 1])], tl.float32),)
        out = out + (row,)
    return out


@triton.jit
def zero_rows(ROWS: tl.constexpr, SPANS: tl.constexpr):
    """fp32 zeros [ROWS, width] per span."""
    out = ()
    for o in tl.static_range(len(SPANS) // 3):
        out = out + (tl.zeros([ROWS, tl.constexpr(SPANS[3 * o + 1])], tl.float32),)
    return out


@triton.jit
def unseen_zero(counter):
    """0, of a loop's counter that is never negative.

    What is addressed with it is loaded anew each time and not kept across the loop, nor are its addresses: the compiler
    knows no better. 80 channels of one vector, in the layout of a tensor core's result, take 20 registers of every
    thread. A multiple of 64, so that loads stay as wide.
    """
    return tl.minimum(counter, 0) * 64


@triton.jit
def load_vectors(pointer, zero, SPANS: tl.constexpr, STEP: tl.constexpr, OTHER: tl.constexpr):
    """A vector as fp32 blocks; STEP 0 repeats its one entry. What lies beyond is OTHER."""
    out = ()
    for o in tl.static_range(len(SPANS) // 3):
        column = tl.arange(0, SPANS[3 * o + 1])
        value = tl.load(pointer + (SPANS[3 * o] + column + zero) * STEP, mask=column < SPANS[3 * o + 2], other=OTHER)
        out = out + (value.to(tl.float32),)
    return out


@triton.jit
def store_vectors(pointer, values, SPANS: tl.constexpr):
    for o in tl.static_range(len(SPANS) // 3):
        column = tl.arange(0, SPANS[3 * o + 1])
        tl.store(pointer + SPANS[3 * o] + column, values[o], mask=column < SPANS[3 * o + 2])


@triton.jit
def add_vectors(pointer, values, SPANS: tl.constexpr):
    """Adds to what store_vectors would store, a vector of this program alone.

    Atomically, though nobody else adds: one thread adds to an entry, in the order of the program, so sums are the same
    bits each time. A load and a store may be given layouts of their own, and one thread then reads what another wrote.
    """
    for o in tl.static_range(len(SPANS) // 3):
        column = tl.arange(0, SPANS[3 * o + 1])
        tl.atomic_add(pointer + SPANS[3 * o] + column, values[o], mask=column < SPANS[3 * o + 2], sem="relaxed")


@triton.jit
def load_block(
    pointer,  # [out, stride], as torch.nn.Linear keeps its weight
    stride,
    zero,  # see unseen_zero
    IN: tl.constexpr, FROM: tl.constexpr, OUT: tl.constexpr, TO: tl.constexpr,
):  # fmt: skip
    """Block (FROM, TO) of the transpose of a weight, [in width, out width]; zero beyond."""
    source, target = tl.arange(0, IN[3 * FROM + 1]), tl.arange(0, OUT[3 * TO + 1])
    inside = (source < IN[3 * FROM + 2])[:, None] & (target < OUT[3 * TO + 2])[None, :]
    at = (OUT[3 * TO] + target)[None, :] * stride + (IN[3 * FROM] + source + zero)[:, None]
    return tl.load(pointer + at, mask=inside, other=0.0)


@triton.jit
def load_matrix(pointer, stride, IN: tl.constexpr, OUT: tl.constexpr, DTYPE: tl.constexpr):
    """The transpose of a weight as blocks, see load_block."""
    out = ()
    for i in tl.static_range(len(IN) // 3):
        row = ()
        for o in tl.static_range(len(OUT) // 3):
            row = row + (narrow(load_block(pointer, stride, 0, IN, i, OUT, o), DTYPE),)
        out = out + (row,)
    return out


@triton.jit
def store_matrix(
    pointer,  # [out, stride]
    stride,
    values,
    IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    for i in tl.static_range(len(IN) // 3):
        for o in tl.static_range(len(OUT) // 3):
            source, target = tl.arange(0, IN[3 * i + 1]), tl.arange(0, OUT[3 * o + 1])
            inside = (source < IN[3 * i + 2])[:, None] & (target < OUT[3 * o + 2])[None, :]
            at = (OUT[3 * o] + target)[None, :] * stride + (IN[3 * i] + source)[:, None]
            tl.store(pointer + at, narrow(values[i][o], pointer.dtype.element_ty), mask=inside)


@triton.jit
def load_rows(
    pointer,  # [n, stride]
    stride,
    row,  # [rows] int64
    inside,  # [rows]
    SPANS: tl.constexpr,
):
    """Rows as fp32 blocks [rows, width]; zero where not inside."""
    out = ()
    for o in tl.static_range(len(SPANS) // 3):
        column = tl.arange(0, SPANS[3 * o + 1])
        mask = inside[:, None] & (column < SPANS[3 * o + 2])[None, :]
        out = out + (tl.load(pointer + row[:, None] * stride + (SPANS[3 * o] + column)[None, :], mask=mask, other=0.0),)
    return out


@triton.jit
def store_rows(
    pointer,  # [n, stride]
    stride,
    row,  # [rows] int64
    inside,  # [rows]
    values,
    SPANS: tl.constexpr,
):
    for o in tl.static_range(len(SPANS) // 3):
        column = tl.arange(0, SPANS[3 * o + 1])
        mask = inside[:, None] & (column < SPANS[3 * o + 2])[None, :]
        at = row[:, None] * stride + (SPANS[3 * o] + column)[None, :]
        tl.store(pointer + at, narrow(values[o], pointer.dtype.element_ty), mask=mask)


@triton.jit
def to_dtype(x, DTYPE: tl.constexpr):
    out = ()
    for o in tl.static_range(len(x)):
        out = out + (narrow(x[o], DTYPE),)
    return out


@triton.jit
def dot(x, y, total, PRECISION: tl.constexpr):
    """total + x y, accumulated in fp32. The interpreter would multiply bf16 as if its bits were integers."""
    if _INTERPRETED:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def multiply_add(
    start,  # [rows, out width] fp32 per span of OUT
    x,  # [rows, in width] per span of IN
    matrix,  # [in width, out width] per pair
    PRECISION: tl.constexpr,
):
    """start + x matrix, accumulated in fp32."""
    out = ()
    for o in tl.static_range(len(start)):
        total = start[o]
        for i in tl.static_range(len(x)):
            total = dot(x[i], matrix[i][o], total, PRECISION)
        out = out + (total,)
    return out


@triton.jit
def multiply_wide(
    start,  # [rows, out width] fp32 per span of OUT
    x,  # [rows, in width] fp32 per span of IN
    matrix,  # [in width, out width] per pair
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """start + x matrix with x in DTYPE. Of fp16, whose one rounding is half of what its results may be off (of bf16's
    a quarter), x is taken as the sum of two, the small one first: of x, high and low two are in registers at once."""
    if DTYPE == tl.float16:
        low = ()
        for i in tl.static_range(len(x)):
            low = low + ((x[i] - x[i].to(DTYPE).to(tl.float32)).to(DTYPE),)
        start = multiply_add(start, low, matrix, PRECISION)
    return multiply_add(start, to_dtype(x, DTYPE), matrix, PRECISION)


@triton.jit
def multiply_transposed(
    x,  # [rows, out width] per span of OUT
    matrix,  # [in width, out width] per pair
    ROWS: tl.constexpr, IN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x matrix^T as blocks [rows, in width], accumulated in fp32."""
    out = ()
    for i in tl.static_range(len(IN) // 3):
        total = tl.zeros([ROWS, tl.constexpr(IN[3 * i + 1])], tl.float32)
        for o in tl.static_range(len(x)):
            total = dot(x[o], tl.trans(matrix[i][o]), total, PRECISION)
        out = out + (total,)
    return out


@triton.jit
def add_outer(
    total,  # [in width, out width] fp32 per pair
    x,  # [rows, in width] per span of IN
    dz,  # [rows, out width] per span of OUT
    PRECISION: tl.constexpr,
):
    """total + x^T dz."""
    out = ()
    for i in tl.static_range(len(x)):
        row = ()
        for o in tl.static_range(len(dz)):
            row = row + (dot(tl.trans(x[i]), dz[o], total[i][o], PRECISION),)
        out = out + (row,)
    return out


@triton.jit
def add_column_sums(
    total,  # [width] fp32 per span
    x,  # [rows, width] fp32 per span
):
    out = ()
    for o in tl.static_range(len(total)):
        out = out + (total[o] + tl.sum(x[o], 0),)
    return out


@triton.jit
def dot_rows(
    x, y,  # [rows, width] per span
    ROWS: tl.constexpr,
):  # fmt: skip
    """sum over columns of x y, [rows] fp32."""
    total = tl.zeros([ROWS], tl.float32)
    for o in tl.static_range(len(x)):
        total += tl.sum(x[o].to(tl.float32) * y[o].to(tl.float32), 1)
    return total


@triton.jit
def repeat_rows(
    x,  # [groups, width] per span
    EACH: tl.constexpr,
):
    """Every row EACH times: [groups * EACH, width] per span."""
    out = ()
    for o in tl.static_range(len(x)):
        wide = tl.broadcast_to(tl.expand_dims(x[o], 1), [x[o].shape[0], EACH, x[o].shape[1]])
        out = out + (tl.reshape(wide, [x[o].shape[0] * EACH, x[o].shape[1]]),)
    return out


@triton.jit
def add_row_groups(
    total,  # [groups, width] fp32 per span
    x,  # [groups * EACH, width] fp32 per span
    EACH: tl.constexpr,
):
    """total + the sum of every EACH rows. Each row goes to its own group alone, so a NaN stays there."""
    out = ()
    for o in tl.static_range(len(x)):
        grouped = tl.reshape(x[o], [total[o].shape[0], EACH, total[o].shape[1]])
        out = out + (total[o] + tl.sum(grouped, 1),)
    return out


@triton.jit
def select_rows(
    inside,  # [rows]
    x,  # [rows, width] per span
):
    """x, and 0 in the rows that are not inside, whatever x is there."""
    out = ()
    for o in tl.static_range(len(x)):
        out = out + (tl.where(inside[:, None], x[o], 0.0),)
    return out
