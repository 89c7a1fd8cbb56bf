"""Dice (paper section 5.3, equation 5)."""

from __future__ import annotations

import torch


def batch_statistics(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance `[C]` of the rows of `s [N, C]`; zeros and ones when there is no row."""
    if s.shape[0] == 0:
        return s.new_zeros(s.shape[1]), s.new_ones(s.shape[1])
    mean = s.mean(0)
    return mean, (s - mean).square().mean(0)


def pointwise(
    s: torch.Tensor,  # [N, C]
    alpha: torch.Tensor,  # [C] or [1], as the following
    mean: torch.Tensor,
    var: torch.Tensor,
    eps: float,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = s (alpha + (1 - alpha) p) with p = sigmoid(weight (s - mean) / sqrt(var + eps) + bias)."""
    z = (s - mean) / torch.sqrt(var + eps)
    if weight is not None:
        z = weight.to(s.dtype) * z
    if bias is not None:
        z = z + bias.to(s.dtype)
    p = torch.sigmoid(z)
    return s * (alpha + (1 - alpha) * p)


def dice(
    x: torch.Tensor,  # [..., C]
    alpha: torch.Tensor,  # [C] or [1]
    mean: torch.Tensor | None,  # [C], running statistics, used in evaluation
    var: torch.Tensor | None,  # [C]
    training: bool,
    eps: float,
    mask: torch.Tensor | None,  # [...] bool, true where valid
    weight: torch.Tensor | None = None,  # [C], of an affine batch norm
    bias: torch.Tensor | None = None,  # [C]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns y `[..., C]` (0 where masked out), mean and variance used `[C]`, and the count of valid rows (0-D)."""
    rows = x.reshape(-1, x.shape[-1])
    valid = rows if mask is None else rows[mask.reshape(-1)]
    # Statistics in fp32 at least: eps = 1e-8 is lost in half precision.
    wide = valid if valid.dtype == torch.float64 else valid.float()
    if training:
        mean, var = batch_statistics(wide)
    else:
        mean, var = mean.to(wide.dtype), var.to(wide.dtype)
    y = pointwise(wide, alpha.to(wide.dtype), mean, var, eps, weight, bias).to(x.dtype)
    if mask is not None:
        y = torch.zeros_like(rows).masked_scatter(mask.reshape(-1, 1), y)
    count = torch.tensor(valid.shape[0], device=x.device)
    return y.reshape(x.shape), mean.detach(), var.detach(), count


def refuses(request) -> None:
    """The reference serves every request."""
