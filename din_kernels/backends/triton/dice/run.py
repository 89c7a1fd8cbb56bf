"""`dice` in Triton: two passes over x in training (statistics, then y), one in evaluation.

With zhat = (x - mean) / sqrt(var + eps), u = weight zhat + bias and p = sigmoid(u):

    y  = x (alpha + (1 - alpha) p)
    du = dy x (1 - alpha) p (1 - p)      dalpha = sum dy x (1 - p)     dweight = sum du zhat     dbias = sum du
    g  = weight du
    dx = dy (alpha + (1 - alpha) p) + (g - avg g - zhat avg(g zhat)) / sqrt(var + eps)

The averages are those of batch statistics, absent in evaluation. Sums run over the valid rows, one part per program,
added in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from din_kernels.backends import Request
from din_kernels.backends.triton import chips, on_device_of, refuses_tensors
from din_kernels.backends.triton.activations import sigmoid
from din_kernels.backends.triton.blocks import narrow

COLUMNS = 64  # of a tile [ROWS, COLUMNS]; 128 bytes of a row of bf16, the width of a memory transaction
ROWS = 64
PROGRAMS_PER_MULTIPROCESSOR = 4


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    return refuses_tensors(request)


@triton.jit
def load_tile(
    x,  # [N, C]
    mask,  # [N] or None
    start, column, rows, channels,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Rows start .. start + ROWS as fp32, offsets of their entries, and which are valid and which are there at all."""
    row = start.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    if mask is not None:
        valid = valid & (tl.load(mask + row, mask=valid, other=0) > 0)
    at = row[:, None] * channels + column[None, :]
    within = (column < channels)[None, :]
    value = tl.load(x + at, mask=valid[:, None] & within, other=0.0).to(tl.float32)
    return value, at, valid, (row < rows)[:, None] & within


@triton.jit(do_not_specialize=["rows"])
def statistics_kernel(
    x, mask,  # as in load_tile
    counts,  # [programs] fp32
    means, squares,  # [programs, C] fp32: mean, and sum of squared differences from it
    rows, channels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Parts of mean and variance, merged as in local_activation_forward.statistics_kernel."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    n = tl.zeros([], tl.float32)
    mean, square = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for start in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        value, _, valid, _ = load_tile(x, mask, tl.cast(start, tl.int32), column, rows, channels, ROWS)
        here = tl.sum(valid.to(tl.float32), 0)
        middle = tl.sum(value, 0) / tl.maximum(here, 1.0)
        apart = tl.where(valid[:, None], value - middle[None, :], 0.0)
        share, d = here / tl.maximum(n + here, 1.0), middle - mean
        square += tl.sum(apart * apart, 0) + d * d * n * share
        mean += d * share
        n += here
    at = tl.program_id(0) * channels + column
    tl.store(means + at, mean, mask=column < channels)
    tl.store(squares + at, square, mask=column < channels)
    tl.store(counts + tl.program_id(0), n)


@triton.jit
def load_channels(alpha, weight, bias, mean, var, eps, column, channels):
    """alpha, weight (1 if None), bias (0 if None), mean and 1 / sqrt(var + eps), each [1, COLUMNS]."""
    inside = column < channels
    a = tl.load(alpha + column, mask=inside, other=0.0)
    m = tl.load(mean + column, mask=inside, other=0.0)
    inverse = 1.0 / tl.sqrt(tl.load(var + column, mask=inside, other=1.0) + eps)
    w, b = tl.full(a.shape, 1.0, tl.float32), tl.zeros(a.shape, tl.float32)
    if weight is not None:
        w = tl.load(weight + column, mask=inside, other=0.0)
    if bias is not None:
        b = tl.load(bias + column, mask=inside, other=0.0)
    return a[None, :], w[None, :], b[None, :], m[None, :], inverse[None, :]


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    x, mask,  # as in load_tile
    alpha, weight, bias, mean, var,  # [C] fp32; weight and bias may be None
    y,  # [N, C]
    rows, channels, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    value, at, valid, there = load_tile(x, mask, tl.program_id(0), column, rows, channels, ROWS)
    a, w, b, m, inverse = load_channels(alpha, weight, bias, mean, var, eps, column, channels)
    out = value * (a + (1.0 - a) * sigmoid(w * ((value - m) * inverse) + b, False))
    tl.store(y + at, narrow(tl.where(valid[:, None], out, 0.0), y.dtype.element_ty), mask=there)


@triton.jit
def gradient(value, dy, a, w, b, m, inverse):
    """zhat, dy/dx at fixed statistics times dy, du, and what is summed to dalpha."""
    zhat = (value - m) * inverse
    p = sigmoid(w * zhat + b, False)
    return zhat, dy * (a + (1.0 - a) * p), dy * value * (1.0 - a) * p * (1.0 - p), dy * value * (1.0 - p)


@triton.jit(do_not_specialize=["rows"])
def sums_kernel(
    grad_y, x, mask, alpha, weight, bias, mean, var,
    parts,  # [programs, 3, C] fp32: sums of dalpha, du zhat, du
    rows, channels, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    a, w, b, m, inverse = load_channels(alpha, weight, bias, mean, var, eps, column, channels)
    d_alpha = tl.zeros([COLUMNS], tl.float32)
    d_weight, d_bias = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for start in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        value, _, valid, _ = load_tile(x, mask, tl.cast(start, tl.int32), column, rows, channels, ROWS)
        dy, _, _, _ = load_tile(grad_y, mask, tl.cast(start, tl.int32), column, rows, channels, ROWS)
        zhat, _, du, of_alpha = gradient(value, dy, a, w, b, m, inverse)
        d_alpha += tl.sum(tl.where(valid[:, None], of_alpha, 0.0), 0)
        d_weight += tl.sum(tl.where(valid[:, None], du * zhat, 0.0), 0)
        d_bias += tl.sum(tl.where(valid[:, None], du, 0.0), 0)
    at = tl.program_id(0) * 3 * channels + column
    tl.store(parts + at, d_alpha, mask=column < channels)
    tl.store(parts + at + channels, d_weight, mask=column < channels)
    tl.store(parts + at + 2 * channels, d_bias, mask=column < channels)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    grad_y, x, mask, alpha, weight, bias, mean, var,
    averages,  # [3, C] fp32: sums_kernel's, over the number of valid rows; None in evaluation
    grad_x,  # [N, C]
    rows, channels, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    a, w, b, m, inverse = load_channels(alpha, weight, bias, mean, var, eps, column, channels)
    value, at, valid, there = load_tile(x, mask, tl.program_id(0), column, rows, channels, ROWS)
    dy, _, _, _ = load_tile(grad_y, mask, tl.program_id(0), column, rows, channels, ROWS)
    zhat, dx, du, _ = gradient(value, dy, a, w, b, m, inverse)
    g = w * du
    if averages is not None:
        inside = column < channels
        of_product = w * tl.load(averages + channels + column, mask=inside, other=0.0)[None, :]
        g = g - w * tl.load(averages + 2 * channels + column, mask=inside, other=0.0)[None, :] - zhat * of_product
    dx += inverse * g
    tl.store(grad_x + at, narrow(tl.where(valid[:, None], dx, 0.0), grad_x.dtype.element_ty), mask=there)


def _grids(x: torch.Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """One program per tile, and as many as stay on the chip."""
    tiles, across = triton.cdiv(x.shape[0], ROWS), triton.cdiv(x.shape[1], COLUMNS)
    most = max(1, chips.multiprocessors(x.device) * PROGRAMS_PER_MULTIPROCESSOR // across)
    return (tiles, across), (min(tiles, most), across)


def _prepared(x, mask, *channels):
    return (x.contiguous(), None if mask is None else mask.contiguous().view(torch.uint8),
            *(None if each is None else each.float().contiguous() for each in channels))  # fmt: skip


def forward(call):
    """Kernel calls of the op's forward: y [N, C], mean and var used [C], count []."""
    x, alpha, weight, bias, mean, var, mask, training, eps = call
    # Filled on the device: a number copied there would wait for it.
    count = torch.full((), x.shape[0], device=x.device) if mask is None else mask.sum()
    x, mask, alpha, weight, bias = _prepared(x, mask, alpha, weight, bias)
    y, channels = torch.empty_like(x), x.shape[1]
    if training:
        mean, var = torch.zeros_like(alpha), torch.ones_like(alpha)
    else:
        mean, var = mean.clone(), var.clone()
    if not y.numel():
        return y, mean, var, count
    every, some = _grids(x)
    with on_device_of(x):
        if training:
            counts = alpha.new_empty(some[0])
            means, squares = (alpha.new_empty(some[0], channels) for _ in range(2))
            statistics_kernel[some](x, mask, counts, means, squares, x.shape[0], channels, ROWS=ROWS, COLUMNS=COLUMNS)
            counts, means, squares = counts.double().unsqueeze(1), means.double(), squares.double()
            total = counts.sum().clamp(min=1)
            middle = (counts * means).sum(0) / total
            spread = (squares + counts * (means - middle).square()).sum(0) / total
            mean, var = middle.float(), torch.where(count > 0, spread, 1.0).float()
        forward_kernel[every](x, mask, alpha, weight, bias, mean, var, y, x.shape[0], channels, eps,
                              ROWS=ROWS, COLUMNS=COLUMNS)  # fmt: skip
    return y, mean, var, count


def backward(call, saved, grads):
    """Kernel calls of the op's backward: gradients of x [N, C] and alpha [C], of weight and bias [C] or [0]."""
    x, alpha, weight, bias, _, _, mask, training, eps = call
    (mean, var), (grad_y,) = saved, grads
    count = x.shape[0] if mask is None else mask.sum()
    affine = weight, bias
    grad_y = grad_y.contiguous()
    x, mask, alpha, weight, bias, mean, var = _prepared(x, mask, alpha, weight, bias, mean, var)
    grad_x, sums = torch.empty_like(x), alpha.new_zeros(3, x.shape[1])
    if x.numel():
        every, some = _grids(x)
        given, size = (grad_y, x, mask, alpha, weight, bias, mean, var), (*x.shape, eps)
        with on_device_of(x):
            parts = alpha.new_empty(some[0], *sums.shape)
            sums_kernel[some](*given, parts, *size, ROWS=ROWS, COLUMNS=COLUMNS)
            sums = parts.sum(0)
            averages = None
            if training:
                averages = sums / (max(count, 1) if mask is None else count.clamp(min=1))
            backward_kernel[every](*given, averages, grad_x, *size, ROWS=ROWS, COLUMNS=COLUMNS)
    grads = (sums[1 + at] if each is not None else alpha.new_empty(0) for at, each in enumerate(affine))
    return grad_x, sums[0].clone(), *(each.clone() for each in grads)
