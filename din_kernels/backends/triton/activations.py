"""Activations: value and derivative beside each other, for the unit by name at compile time and for the op `dice`.

Every activation is a pair

    <name>(z, own, FAST)               y
    <name>_gradient(z, dy, own, FAST)  dz, and what is summed over all pairs, SUMS of them

with z and dy [rows, width] in fp32, and `own` its parameters of these channels: none, or a named tuple of [1, width]
each. A gradient that y alone says takes y in place of z. A new activation is a pair here and a line in `activate` and
in `gradient`, with parameters also one in `own_params` and in `SUMS`. FAST takes tanh.approx.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.blocks import load_vectors

# How many sums over all pairs the gradients of an activation's parameters, and of its batch statistics, are made of.
SUMS = {"prelu": 1, "dice": 3}


# --- sigmoid, relu, tanh, silu, identity ------------------------------------------------------------------------------


@triton.jit
def sigmoid(z, FAST: tl.constexpr):
    """y = 1 / (1 + exp(-z)) = (1 + tanh(z / 2)) / 2"""
    if FAST:
        return 0.5 * tanh(0.5 * z, FAST) + 0.5
    else:
        return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def sigmoid_gradient(y, dy):
    """dz = dy y (1 - y)"""
    return dy * y * (1.0 - y)


@triton.jit
def relu(z):
    """y = max(z, 0); NaN stays NaN."""
    return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu_gradient(z, dy):
    """dz = dy where z > 0"""
    return tl.where(z > 0, dy, 0.0)


@triton.jit
def tanh(z, FAST: tl.constexpr):
    """y = (1 - e) / (1 + e), e = exp(-2 z)"""
    if FAST:
        # One special-function operation in place of two and a division; 2^-11 relative, below half precision's 2^-9
        # of bf16 and near that of fp16.
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [z], dtype=tl.float32, is_pure=True, pack=1)
    else:
        # (1 - e) / (1 + e) of |z| is off by 2e-7 of the result, 2 / (1 + e) - 1 by 2e-7 of 1: sums that cancel, as
        # gradients under softmax, show it. Near 0, where 1 - e cancels too, the series z - z^3/3 + 2 z^5/15 - ...
        e = tl.exp(-2.0 * tl.abs(z))
        far = (1.0 - e) / (1.0 + e)
        zz = z * z
        series = z + z * zz * (-1 / 3 + zz * (2 / 15 + zz * (-17 / 315 + zz * (62 / 2835))))
        return tl.where(tl.abs(z) < 0.25, series, tl.where(z < 0, -far, far))


@triton.jit
def tanh_gradient(y, dy):
    """dz = dy (1 - y^2)"""
    return dy * (1.0 - y * y)


@triton.jit
def silu(z, FAST: tl.constexpr):
    """y = z sigmoid(z)"""
    return z * sigmoid(z, FAST)


@triton.jit
def silu_gradient(z, dy, FAST: tl.constexpr):
    """dz = dy (p + y (1 - p)), p = sigmoid(z)"""
    p = sigmoid(z, FAST)
    return dy * (p + z * p * (1.0 - p))


# --- prelu ------------------------------------------------------------------------------------------------------------


class PRelu(NamedTuple):
    """Parameters of `prelu`."""

    slope: tl.tensor


@triton.jit
def prelu(z, own):
    """y = z where z > 0, else slope z"""
    return tl.where(z > 0, z, own.slope * z)


@triton.jit
def prelu_gradient(z, dy, own):
    """dz = dy where z > 0, else slope dy;  dslope = sum of z dy where z <= 0"""
    return tl.where(z > 0, dy, own.slope * dy), (tl.where(z > 0, 0.0, z * dy),)


# --- dice -------------------------------------------------------------------------------------------------------------


class Affine(NamedTuple):
    """Weight and bias of an affine batch norm."""

    weight: tl.tensor
    bias: tl.tensor


class Averages(NamedTuple):
    """What flows through batch statistics, in a backward: averages over all pairs."""

    g: tl.tensor
    g_zhat: tl.tensor


class Dice(NamedTuple):
    """Parameters of `dice`; () stands for what is not there."""

    alpha: tl.tensor
    mean: tl.tensor
    inverse: tl.tensor  # 1 / sqrt(var + eps)
    affine: Affine | tuple[()]
    averages: Averages | tuple[()]


class DiceSums(NamedTuple):
    """What a pair adds to the sums that gradients of parameters and of batch statistics are made of."""

    d_alpha: tl.tensor
    du: tl.tensor
    du_zhat: tl.tensor


@triton.jit
def dice_gate(z, own, FAST: tl.constexpr):
    """zhat = (z - mean) / sqrt(var + eps),  p = sigmoid(weight zhat + bias)"""
    zhat = (z - own.mean) * own.inverse
    if len(own.affine) > 0:
        return zhat, sigmoid(own.affine.weight * zhat + own.affine.bias, FAST)
    else:
        return zhat, sigmoid(zhat, FAST)


@triton.jit
def dice(z, own, FAST: tl.constexpr):
    """y = z (alpha + (1 - alpha) p)"""
    _, p = dice_gate(z, own, FAST)
    return z * (own.alpha + (1.0 - own.alpha) * p)


@triton.jit
def dice_gradient(z, dy, own, FAST: tl.constexpr):
    """dz, and the sums of dalpha, du and du zhat over all pairs; u = weight zhat + bias, see dice_gate.

    du = dy z (1 - alpha) p (1 - p),  g = weight du,  dalpha = dy z (1 - p)
    dz = dy (alpha + (1 - alpha) p) + (g - avg g - zhat avg(g zhat)) / sqrt(var + eps)

    The averages come through the batch statistics, as in batch norm; given statistics have none.
    """
    zhat, p = dice_gate(z, own, FAST)
    du = dy * z * (1.0 - own.alpha) * p * (1.0 - p)
    direct = dy * (own.alpha + (1.0 - own.alpha) * p)
    sums = DiceSums(dy * z * (1.0 - p), du, du * zhat)
    g = du
    if len(own.affine) > 0:
        g = own.affine.weight * du
    if len(own.averages) > 0:
        g = g - own.averages.g - zhat * own.averages.g_zhat
    return direct + own.inverse * g, sums


# --- by name, for the unit --------------------------------------------------------------------------------------------


@triton.jit
def load_params(
    pointers,  # [H] or [1] each, in the order of `own_params`
    zero,  # see blocks.unseen_zero
    SPANS: tl.constexpr,
    STEPS: tl.constexpr,  # per parameter 1, or 0 where it has one entry for all channels
):
    """Per span the parameters of its channels, each [width]."""
    vectors = ()
    for p in tl.static_range(len(STEPS)):
        vectors = vectors + (load_vectors(pointers[p], zero, SPANS, STEPS[p], 0.0),)
    out = ()
    for o in tl.static_range(len(SPANS.width)):
        own = ()
        for p in tl.static_range(len(STEPS)):
            own = own + (vectors[p][o],)
        out = out + (own,)
    return out


@triton.jit
def own_params(params, ACTIVATION: tl.constexpr):
    """The parameters of one span, by name: slope; alpha, mean and inverse of Dice, in its backward the averages too."""
    if ACTIVATION == "prelu":
        return PRelu(params[0][None, :])
    elif ACTIVATION == "dice":
        averages = ()
        if len(params) == 5:
            averages = Averages(params[3][None, :], params[4][None, :])
        return Dice(params[0][None, :], params[1][None, :], params[2][None, :], (), averages)
    else:
        return ()


@triton.jit
def activate(
    z,  # [rows, width] fp32
    params,  # of these channels, each [width]
    ACTIVATION: tl.constexpr,
    FAST: tl.constexpr,
):
    """y of the activation of this name."""
    own = own_params(params, ACTIVATION)
    if ACTIVATION == "sigmoid":
        return sigmoid(z, FAST)
    elif ACTIVATION == "relu":
        return relu(z)
    elif ACTIVATION == "tanh":
        return tanh(z, FAST)
    elif ACTIVATION == "silu":
        return silu(z, FAST)
    elif ACTIVATION == "prelu":
        return prelu(z, own)
    elif ACTIVATION == "dice":
        return dice(z, own, FAST)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return z


@triton.jit
def gradient(
    z,  # [rows, width] fp32
    y,  # [rows, width], rounded as the next layer takes it
    dy,  # [rows, width] fp32
    params,  # of these channels, each [width]
    ACTIVATION: tl.constexpr,
    FAST: tl.constexpr,
):
    """dz of the activation of this name, and what is summed over all pairs."""
    own = own_params(params, ACTIVATION)
    if ACTIVATION == "sigmoid":
        return sigmoid_gradient(y.to(tl.float32), dy), ()
    elif ACTIVATION == "relu":
        return relu_gradient(z, dy), ()
    elif ACTIVATION == "tanh":
        return tanh_gradient(y.to(tl.float32), dy), ()
    elif ACTIVATION == "silu":
        return silu_gradient(z, dy, FAST), ()
    elif ACTIVATION == "prelu":
        return prelu_gradient(z, dy, own)
    elif ACTIVATION == "dice":
        return dice_gradient(z, dy, own, FAST)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return dy, ()
