"""Dice as a module."""

from __future__ import annotations

import torch
from torch import nn

from din_kernels.ops.dice import dice


class Dice(nn.Module):
    """The data adaptive activation (paper, 5.3): x (alpha + (1 - alpha) sigmoid((x - E[x]) / sqrt(Var[x] + eps))).

    Args:
        num_features: C, channels of the last dimension.
        eps: added to the variance; the paper's 1e-8.
        momentum: weight of the newest batch in the running statistics.

    alpha `[C]` is learnable and starts at 0. In training the statistics are those of the batch's valid rows, in
    evaluation the running ones (unbiased variance, as BatchNorm); a batch without a valid row leaves them alone.

    Example:
        >>> y = Dice(200)(torch.randn(32, 200))
    """

    def __init__(self, num_features: int, eps: float = 1e-8, momentum: float = 0.1, device=None, dtype=None):
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        factory = {"device": device, "dtype": dtype}
        self.alpha = nn.Parameter(torch.zeros(num_features, **factory))
        self.register_buffer("running_mean", torch.zeros(num_features, **factory))
        self.register_buffer("running_var", torch.ones(num_features, **factory))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x `[..., C]`, mask `[...]` bool, true where valid; returns `[..., C]`, 0 where masked out."""
        y, mean, var, count = dice(
            x, self.alpha, self.running_mean, self.running_var, training=self.training, eps=self.eps, mask=mask
        )
        if self.training:
            self.observe(mean, var, count)
        return y

    @torch.no_grad()
    def observe(self, mean: torch.Tensor, var: torch.Tensor, count: torch.Tensor) -> None:
        """Updates the running statistics by a batch's mean `[C]`, biased variance `[C]` and count (0-D)."""
        unbiased = var * (count / (count - 1).clamp(min=1).to(var.dtype))
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(batch.to(running.dtype), self.momentum * (count > 0).to(running.dtype))

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"
