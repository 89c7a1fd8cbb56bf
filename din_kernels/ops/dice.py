"""Dice (paper section 5.3) as a public function."""

from __future__ import annotations

import torch

from din_kernels import backends, checks
from din_kernels.backends.reference.dice import dice as _reference


def dice(
    x: torch.Tensor,
    alpha: torch.Tensor,
    mean: torch.Tensor | None = None,
    var: torch.Tensor | None = None,
    *,
    training: bool,
    eps: float = 1e-8,
    mask: torch.Tensor | None = None,
):
    """y = x (alpha + (1 - alpha) p) with p = sigmoid((x - mean) / sqrt(var + eps)), per channel.

    Args:
        x: `[..., C]` floating point.
        alpha: `[C]` or `[1]`, learnable.
        mean, var: `[C]` running statistics, used and needed when not training.
        training: take mean and biased variance over the valid rows of x, in fp32 at least; gradients flow through both.
        eps: added to the variance (the paper's 1e-8).
        mask: `[...]` bool, true where valid; other rows give 0 and count in no statistic.

    Returns:
        y `[..., C]`, the mean and variance that were used `[C]`, and the number of valid rows (0-D).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    checks.is_tensor("x", x)
    checks.is_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must have shape [..., C], got {list(x.shape)}")
    channels = x.shape[-1]
    given = [("alpha", alpha)] + ([] if training else [("mean", mean), ("var", var)])
    for name, value in given:
        checks.is_tensor(name, value, 1, f"[{channels}]")
        if value.shape[0] not in ((1, channels) if name == "alpha" else (channels,)):
            raise ValueError(f"{name} must have shape [{channels}], got {list(value.shape)}")
        checks.same_device(name, value, "x", x)
    if mask is not None:
        checks.is_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, true where valid, got {mask.dtype}")
        checks.has_shape("mask", mask, tuple(x.shape[:-1]), " (x without its channels)")
    backends.select(backends.Request("dice", x.device.type, x.dtype))
    return _reference(x, alpha, mean, var, training, eps, mask)
