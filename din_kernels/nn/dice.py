"""Dice as a module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from din_kernels import checks
from din_kernels.jagged import Jagged, Padded
from din_kernels.ops.dice import dice


class Dice(nn.Module):
    """The data adaptive activation (paper, 5.3): x (alpha + (1 - alpha) sigmoid((x - E[x]) / sqrt(Var[x] + eps))).

    Args:
        num_features: C, channels of the last dimension.
        eps: added to the variance; the paper's 1e-8.
        momentum: weight of the newest batch in the running statistics, 0 to 1; None: every batch weighs the same, as in
            BatchNorm, and `num_batches_tracked` counts those with a valid row.
        affine: learn weight and bias `[C]` of the batch norm inside the sigmoid, as DeepCTR-Torch does and the paper
            does not.

    alpha `[C]` is learnable and starts at 0. In training the statistics are those of the batch's valid rows, in
    evaluation the running ones (unbiased variance, as BatchNorm); a batch without a valid row leaves them alone.
    `reset_parameters` restores parameters and statistics, as is needed after `to_empty`. `from_deepctr_torch` and
    `from_fuxictr` continue from the modules of those libraries.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> y = Dice(200)(torch.randn(32, 200))
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-8,
        momentum: float | None = 0.1,
        affine: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        checks.size("num_features", num_features)
        checks.number("eps", eps, at_least=0)
        if momentum is not None:
            checks.number("momentum", momentum, at_least=0, at_most=1)
        checks.flag("affine", affine)
        checks.device("device", device)
        checks.floating_dtype("dtype", dtype)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        factory = {"device": device, "dtype": dtype}
        self.alpha = nn.Parameter(torch.empty(num_features, **factory))
        self.weight = nn.Parameter(torch.empty(num_features, **factory)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features, **factory)) if affine else None
        self.register_buffer("running_mean", torch.empty(num_features, **factory))
        self.register_buffer("running_var", torch.empty(num_features, **factory))
        if momentum is None:
            self.register_buffer("num_batches_tracked", torch.empty((), dtype=torch.int64, device=device))
        self.reset_parameters()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        """As torch's, but that nothing of the module is loaded where its count of batches is none: cast to an integer,
        NaN or a fraction would be some other count."""
        name = prefix + "num_batches_tracked"
        given = state_dict.get(name) if hasattr(self, "num_batches_tracked") else None
        if isinstance(given, torch.Tensor) and not _is_count(given):
            errors.append(f"{name} must be a whole number of at least 0, got {given.tolist()}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def reset_parameters(self) -> None:
        """As constructed: alpha and bias 0, weight 1, and the running statistics too."""
        nn.init.zeros_(self.alpha)
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Running mean 0, variance 1, no batch counted."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        if hasattr(self, "num_batches_tracked"):
            self.num_batches_tracked.zero_()

    @classmethod
    def from_deepctr_torch(
        cls, state: Mapping[str, torch.Tensor], eps: float = 1e-8, momentum: float | None = 0.1
    ) -> Dice:
        """From the state_dict of DeepCTR-Torch's `Dice(num_features, dim, epsilon)`: its batch norm is affine.

        Args:
            state: bn.weight, bn.bias, bn.running_mean, bn.running_var, and alpha `[C]` (dim 2) or `[C, 1]` (dim 3);
                versions that keep alpha out of the state have it at 0.
            eps: that module's epsilon: 1e-8, in some versions 1e-9.
            momentum: as of its BatchNorm1d.
        """
        made = cls._with_statistics(state, eps, momentum, affine=True)
        made.weight.data.copy_(state["bn.weight"])
        made.bias.data.copy_(state["bn.bias"])
        return made

    @classmethod
    def from_fuxictr(cls, state: Mapping[str, torch.Tensor]) -> Dice:
        """From the state_dict of FuxiCTR's `Dice(input_dim)`: batch norm without affine, momentum 0.01, eps 1e-9.

        Args:
            state: alpha, bn.running_mean, bn.running_var, all `[C]`.
        """
        return cls._with_statistics(state, eps=1e-9, momentum=0.01, affine=False)

    @classmethod
    def _with_statistics(cls, state, eps, momentum, affine):
        for name in ("bn.running_mean", "bn.running_var", *(("bn.weight", "bn.bias") if affine else ())):
            if name not in state:
                raise ValueError(f"state must hold {name!r}, got {', '.join(map(repr, state)) or 'none'}")
        mean = state["bn.running_mean"]
        made = cls(mean.shape[0], eps, momentum, affine, mean.device, mean.dtype)
        made.running_mean.copy_(mean)
        made.running_var.copy_(state["bn.running_var"])
        if momentum is None and "bn.num_batches_tracked" in state:
            made.num_batches_tracked.copy_(state["bn.num_batches_tracked"])
        if "alpha" in state:
            made.alpha.data.copy_(state["alpha"].reshape(-1))
        return made

    def forward(
        self, x: torch.Tensor | Jagged, mask: torch.Tensor | None = None, lengths: torch.Tensor | None = None
    ) -> torch.Tensor | Jagged:
        """Activates `x`; what is padding gives 0 and counts in no statistic.

        Args:
            x: `[..., C]`; or `[B, T, C]` with lengths; or a Jagged of values `[N, C]`, which has no padding.
            mask: `[...]` bool, true where valid.
            lengths: `[B]`, valid rows at the start of each of B; excludes mask.

        Returns:
            As x: a tensor of its shape, or a Jagged.
        """
        values = x.values if isinstance(x, Jagged) else x
        checks.is_tensor("x", values)
        if values.dim() > 1 and values.shape[-1] != self.alpha.shape[0]:  # alpha [1] alone would fit any x
            raise ValueError(f"x must have shape [..., {self.alpha.shape[0]}] (num_features), got {list(values.shape)}")
        if lengths is not None:
            if isinstance(x, Jagged) or mask is not None or x.dim() != 3:
                shape = "a Jagged" if isinstance(x, Jagged) else f"shape {list(x.shape)}"
                raise ValueError(f"lengths must come with x of shape [B, T, C] and no mask, got {shape}")
            mask = Padded(x, lengths).valid()
        elif isinstance(x, Jagged) and mask is not None:
            raise ValueError("mask must be None with a Jagged, whose rows are all valid")
        options = {"training": self.training, "eps": self.eps, "weight": self.weight, "bias": self.bias}
        y, mean, var, count = dice(values, self.alpha, self.running_mean, self.running_var, mask=mask, **options)
        if self.training:
            self.observe(mean, var, count)
        return Jagged._trusted(y, x.offsets) if isinstance(x, Jagged) else y

    @torch.no_grad()
    def observe(self, mean: torch.Tensor, var: torch.Tensor, count: torch.Tensor) -> None:
        """Updates the running statistics by a batch's mean `[C]`, biased variance `[C]` and count (0-D)."""
        n = count.to(var.dtype)
        unbiased, valid = var * (n / (n - 1).clamp(min=1)), n.clamp(max=1)
        if self.momentum is not None:
            weight = self.momentum * valid
        elif hasattr(self, "num_batches_tracked"):
            self.num_batches_tracked.add_(count.clamp(max=1).to(torch.int64))
            weight = valid / self.num_batches_tracked.clamp(min=1)
        else:
            raise ValueError(
                "momentum must be None when Dice is made, for num_batches_tracked; here it became None later"
            )
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(batch.to(running.dtype), weight.to(running.dtype))

    def extra_repr(self) -> str:
        affine = ", affine=True" if self.weight is not None else ""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}{affine}"


def _is_count(tensor: torch.Tensor) -> bool:
    """Whether the number can be one of batches; of a tensor without values its dtype alone is known."""
    if tensor.dtype not in checks.REAL_DTYPES:
        return False
    if not checks.values_readable(tensor) or not tensor.dtype.is_floating_point:
        return not checks.values_readable(tensor) or bool((tensor >= 0).all())
    return bool(((tensor >= 0) & (tensor < 2**63) & (tensor == tensor.floor())).all())
