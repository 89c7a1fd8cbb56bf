"""Dice's formulas as its kernels evaluate them: what is constant over the rows is one number per channel.

    centred = x - mean,  zhat = centred inverse,  inverse = 1 / sqrt(var + eps),  u = weight zhat + bias
    p = sigmoid(u),  y = x (alpha + (1 - alpha) p)

The gate g is what the special-function unit gives: p itself, or under FAST tanh(u / 2), which is one operation and of
which p = (1 + g) / 2. The constants take the rest, so that

    y = x (offset + gain g)
    1 - p = (1 - g) REST,  p (1 - p) = bend(g) BEND

centred is subtracted and not folded into a product's constant: in a channel far from 0, that would cancel.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from din_kernels.backends.triton.activations import tanh

LOG2_E = tl.constexpr(1.4426950408889634)


class Parameters(NamedTuple):
    """A call's parameters, [C] fp32 each."""

    alpha: tl.tensor
    weight: tl.tensor | None
    bias: tl.tensor | None


class Channels(NamedTuple):
    """What g is made of, by lane."""

    mean: tl.tensor
    scale: tl.tensor
    shift: tuple  # of one; () without a bias


@triton.jit
def load_inverse(var, eps, column, inside):
    """1 / sqrt(var + eps)"""
    return 1.0 / tl.sqrt(tl.load(var + column, mask=inside, other=1.0) + eps)


@triton.jit
def load_weight(given, column, inside):
    """The weight of an affine batch norm, 1 where it has none."""
    weight = tl.full(column.shape, 1.0, tl.float32)
    if given.weight is not None:
        weight = tl.load(given.weight + column, mask=inside, other=1.0)
    return weight


@triton.jit
def load_channels(given, mean, var, eps, column, inside, FAST: tl.constexpr):
    """Constants of `gate`."""
    factor = 0.5 if FAST else -LOG2_E
    scale = factor * load_weight(given, column, inside) * load_inverse(var, eps, column, inside)
    shift = ()
    if given.bias is not None:
        shift = (factor * tl.load(given.bias + column, mask=inside, other=0.0),)
    return Channels(tl.load(mean + column, mask=inside, other=0.0), scale, shift)


@triton.jit
def gate(x, own, FAST: tl.constexpr):
    """centred and g."""
    centred = x - own.mean[None, :]
    u = centred * own.scale[None, :]
    if len(own.shift) > 0:
        u += own.shift[0][None, :]
    if FAST:
        return centred, tanh(u, FAST)
    else:
        return centred, 1.0 / (1.0 + tl.exp2(u))


@triton.jit
def line(alpha, FAST: tl.constexpr):
    """offset and gain of alpha + (1 - alpha) p = offset + gain g"""
    if FAST:
        return 0.5 + 0.5 * alpha, 0.5 - 0.5 * alpha
    else:
        return alpha, 1.0 - alpha


@triton.jit
def bend(g, FAST: tl.constexpr):
    """p (1 - p) / BEND"""
    if FAST:
        return 1.0 - g * g
    else:
        return g * (1.0 - g)


# 1 - p = (1 - g) REST, and p (1 - p) = bend(g) BEND
@triton.jit
def factors(FAST: tl.constexpr):
    """REST and BEND."""
    if FAST:
        return 0.5, 0.25
    else:
        return 1.0, 1.0
