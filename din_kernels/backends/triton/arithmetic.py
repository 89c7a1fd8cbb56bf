"""Arithmetic on blocks (see blocks.py): products, and sums over rows and columns."""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.blocks import ON_INTERPRETER, narrow, to_dtype

# --- products ---------------------------------------------------------------------------------------------------------


@triton.jit
def dot(x, y, total, PRECISION: tl.constexpr):
    """total + x y, accumulated in fp32. The interpreter, which knows fewer precisions, would multiply bf16 as if its
    bits were integers."""
    if ON_INTERPRETER:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def fused_multiply_add(x, y, z, FAST: tl.constexpr):
    """x y + z of 16-bit numbers, rounded once; FAST: by an instruction that makes two of them."""
    if FAST and x.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [x, y, z], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    elif FAST and x.dtype == tl.float16:
        return tl.inline_asm_elementwise(
            "fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r", [x, y, z], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        return narrow(x.to(tl.float32) * y.to(tl.float32) + z.to(tl.float32), x.dtype)


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
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """start + x matrix with x in DTYPE.

    In fp16, one rounding of x is half of the error that a result may have (in bf16 a quarter), so x is taken as the sum
    of two fp16 numbers. The small one comes first: high and low are then in registers together for one block alone.
    """
    if DTYPE == tl.float16:
        low = ()
        for i in tl.static_range(len(x)):
            low = low + ((x[i] - x[i].to(DTYPE).to(tl.float32)).to(DTYPE),)
        start = multiply_add(start, low, matrix, PRECISION)
    return multiply_add(start, to_dtype(x, DTYPE), matrix, PRECISION)


@triton.jit
def multiply_transposed(
    start,  # [rows, in width] fp32 per span of IN
    x,  # [rows, out width] per span of OUT
    matrix,  # [in width, out width] per pair
    PRECISION: tl.constexpr,
):
    """start + x matrix^T, accumulated in fp32."""
    out = ()
    for i in tl.static_range(len(start)):
        total = start[i]
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
def dot_rows(
    x,  # [rows, width] per span
    y,  # [rows, width] per span
    ROWS: tl.constexpr,
):
    """sum over columns of x y, [rows] fp32."""
    total = tl.zeros([ROWS], tl.float32)
    for o in tl.static_range(len(x)):
        total += tl.sum(x[o].to(tl.float32) * y[o].to(tl.float32), 1)
    return total


# --- sums by products: what tensor cores add up needs no conversion and no shuffle ------------------------------------


@triton.jit
def high_and_low(x, DTYPE: tl.constexpr):
    """x in fp32 as the sum of two numbers of DTYPE."""
    high = narrow(x, DTYPE)
    return high, narrow(x - high.to(tl.float32), DTYPE)


@triton.jit
def as_rows(high, low):
    """[16, length]: row 0 is `high`, row 1 `low`, the rest zero."""
    row = tl.arange(0, 16)[:, None]
    nothing = tl.zeros_like(high)[None, :]
    return tl.where(row == 0, high[None, :], tl.where(row == 1, low[None, :], nothing))


@triton.jit
def as_columns(high, low):
    """[length, 16]: column 0 is `high`, column 1 `low`, the rest zero."""
    column = tl.arange(0, 16)[None, :]
    nothing = tl.zeros_like(high)[:, None]
    return tl.where(column == 0, high[:, None], tl.where(column == 1, low[:, None], nothing))


@triton.jit
def add_weighted_rows(
    total,  # [16, width] fp32 per span: the sum is that of its rows
    w,  # [rows] fp32
    x,  # [rows, width] per span, 16 bit
    PRECISION: tl.constexpr,
):
    """total with the sum of w x over the rows."""
    high, low = high_and_low(w, x[0].dtype)
    rows = as_rows(high, low)
    out = ()
    for o in tl.static_range(len(x)):
        out = out + (dot(rows, x[o], total[o], PRECISION),)
    return out


@triton.jit
def add_all_rows(
    total,  # [16, width] fp32 per span: the sum is that of its rows
    x,  # [rows, width] per span, 16 bit
    PRECISION: tl.constexpr,
):
    """total with the sum over the rows."""
    ROWS: tl.constexpr = x[0].shape[0]
    one = narrow(tl.where(tl.arange(0, 16)[:, None] == 0, 1.0, 0.0), x[0].dtype)
    one = narrow(tl.where(tl.arange(0, 16)[:, None] == 0, 1.0, 0.0), x[0].dtype)
    ones = tl.broadcast_to(one, [16, ROWS])
    out = ()
    for o in tl.static_range(len(x)):
        out = out + (dot(ones, x[o], total[o], PRECISION),)
    return out


@triton.jit
def multiply_vector(
    x,  # [rows, width] per span, 16 bit
    y,  # [width] per span, of the same dtype
    PRECISION: tl.constexpr,
):
    """x y, [rows] fp32."""
    total = tl.zeros([x[0].shape[0], 16], tl.float32)
    for o in tl.static_range(len(x)):
        total = dot(x[o], as_columns(y[o], tl.zeros_like(y[o])), total, PRECISION)
    return tl.sum(total, 1)


# --- sums over rows ---------------------------------------------------------------------------------------------------


@triton.jit
def add_column_sums(
    total,  # [width] fp32 per span
    x,  # [rows, width] fp32 per span
):
    """total + the sums over rows."""
    out = ()
    for o in tl.static_range(len(total)):
        out = out + (total[o] + tl.sum(x[o], 0),)
    return out


@triton.jit
def column_sums(
    x,  # [rows, width] fp32 per span
    inside,  # [rows]
):
    """Sums over the rows inside, [width] per span."""
    out = ()
    for o in tl.static_range(len(x)):
        out = out + (tl.sum(tl.where(inside[:, None], x[o], 0.0), 0),)
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


# --- rows -------------------------------------------------------------------------------------------------------------


@triton.jit
def repeat_vector(x, EACH: tl.constexpr):
    """Every entry of x [groups] EACH times."""
    return tl.reshape(tl.broadcast_to(x[:, None], [x.shape[0], EACH]), [x.shape[0] * EACH])


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
def select_rows(
    inside,  # [rows]
    x,  # [rows, width] per span
):
    """x, and 0 in the rows that are not inside, whatever x is there."""
    out = ()
    for o in tl.static_range(len(x)):
        out = out + (tl.where(inside[:, None], x[o], 0.0),)
    return out
