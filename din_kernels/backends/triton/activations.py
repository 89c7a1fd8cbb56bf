"""Activations as policies, plugged into the unit by name at compile time.

Parameters of a block of channels: PReLU (slope,); Dice (alpha, mean, 1 / sqrt(var + eps)), with batch statistics in
backward also the averages over all pairs of g and g zhat, see `gradient`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.blocks import load_vectors


@triton.jit
def tanh(x, FAST: tl.constexpr):
    if FAST:
        # One special-function operation in place of two and a division; 2^-11 relative, below half precision's 2^-9
        # of bf16 and near that of fp16.
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        # (1 - e) / (1 + e), e = exp(-2 |x|), is off by 2e-7 of the result; 2 / (1 + e) - 1 by 2e-7 of 1, and sums that
        # cancel, as gradients under softmax, show it. Near 0, where 1 - e cancels too: x - x^3/3 + 2 x^5/15 - ...
        e = tl.exp(-2.0 * tl.abs(x))
        far = (1.0 - e) / (1.0 + e)
        xx = x * x
        series = x + x * xx * (-1 / 3 + xx * (2 / 15 + xx * (-17 / 315 + xx * (62 / 2835))))
        return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -far, far))


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    if FAST:
        return 0.5 * tanh(0.5 * x, FAST) + 0.5
    else:
        return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def load_params(
    pointers,  # prelu: slope; dice: alpha, mean, 1 / sqrt(var + eps) (and the two averages); each [H] or [1]
    zero,  # see blocks.unseen_zero
    SPANS: tl.constexpr, STEPS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Per span the parameters of its channels, each [width]."""
    out = ()
    if ACTIVATION == "prelu":
        slope = load_vectors(pointers[0], zero, SPANS, STEPS[0], 0.0)
        for o in tl.static_range(len(SPANS) // 3):
            out = out + ((slope[o],),)
    elif ACTIVATION == "dice":
        alpha = load_vectors(pointers[0], zero, SPANS, STEPS[0], 0.0)
        mean = load_vectors(pointers[1], zero, SPANS, STEPS[1], 0.0)
        inverse = load_vectors(pointers[2], zero, SPANS, STEPS[2], 0.0)
        for o in tl.static_range(len(SPANS) // 3):
            out = out + ((alpha[o], mean[o], inverse[o]),)
        if len(STEPS) == 5:
            first, second = out, load_vectors(pointers[3], zero, SPANS, STEPS[3], 0.0)
            third = load_vectors(pointers[4], zero, SPANS, STEPS[4], 0.0)
            out = ()
            for o in tl.static_range(len(SPANS) // 3):
                out = out + (first[o] + (second[o], third[o]),)
    else:
        for _ in tl.static_range(len(SPANS) // 3):
            out = out + ((),)
    return out


@triton.jit
def activate(
    z,  # [rows, width] fp32
    params,  # of these channels, each [width]
    ACTIVATION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    if ACTIVATION == "sigmoid":
        return sigmoid(z, FAST)
    elif ACTIVATION == "relu":
        return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "tanh":
        return tanh(z, FAST)
    elif ACTIVATION == "prelu":
        return tl.where(z > 0, z, params[0][None, :] * z)
    elif ACTIVATION == "dice":
        # y = z (alpha + (1 - alpha) p),  p = sigmoid(zhat),  zhat = (z - mean) / sqrt(var + eps)
        alpha = params[0][None, :]
        return z * (alpha + (1.0 - alpha) * sigmoid((z - params[1][None, :]) * params[2][None, :], FAST))
    else:
        tl.static_assert(ACTIVATION == "identity")
        return z


@triton.jit
def gradient(
    z,  # [rows, width] fp32
    dy,  # [rows, width] fp32
    params,  # of these channels, each [width]
    ACTIVATION: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dz, and what is summed over all pairs: PReLU (z dy where z <= 0,), which is dslope; Dice (dalpha, g, g zhat)."""
    if ACTIVATION == "sigmoid":
        y = sigmoid(z, FAST)
        return dy * y * (1.0 - y), ()
    elif ACTIVATION == "relu":
        return tl.where(z > 0, dy, 0.0), ()
    elif ACTIVATION == "tanh":
        y = tanh(z, FAST)
        return dy * (1.0 - y * y), ()
    elif ACTIVATION == "prelu":
        return tl.where(z > 0, dy, params[0][None, :] * dy), (tl.where(z > 0, 0.0, z * dy),)
    elif ACTIVATION == "dice":
        # g = dL/dzhat = dy z (1 - alpha) p (1 - p).  Through the batch mean and variance, as in batch norm:
        # dz = dy (alpha + (1 - alpha) p) + (g - avg g - zhat avg(g zhat)) / sqrt(var + eps)
        alpha, inverse = params[0][None, :], params[2][None, :]
        zhat = (z - params[1][None, :]) * inverse
        p = sigmoid(zhat, FAST)
        g = dy * z * (1.0 - alpha) * p * (1.0 - p)
        direct = dy * (alpha + (1.0 - alpha) * p)
        sums = (dy * z * (1.0 - p), g, g * zhat)
        if len(params) == 5:
            return direct + inverse * (g - params[3][None, :] - zhat * params[4][None, :]), sums
        else:
            return direct + inverse * g, sums
    else:
        tl.static_assert(ACTIVATION == "identity")
        return dy, ()
