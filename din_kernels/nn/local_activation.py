"""The local activation unit as a module."""

from __future__ import annotations

import torch
from torch import nn

from din_kernels import checks
from din_kernels.jagged import Jagged, Padded
from din_kernels.nn.dice import Dice
from din_kernels.ops.local_activation import (
    ACTIVATIONS,
    FEATURES,
    NORMALIZATIONS,
    attend,
    feature_width,
)


class LocalActivationUnit(nn.Module):
    """DIN's local activation unit (paper section 4.3): attention of candidates over variable-length histories.

    Args:
        dim: D, width of queries and behaviours.
        hidden: widths of the MLP's 0 to 3 hidden layers.
        activation: "sigmoid", "relu", "prelu", "tanh", "identity" or "dice", after every hidden layer.
        features: "concat" (q, k, q - k, q * k), "product" (q, k, q * k) or "outer" (q, k, vec(q k^T)).
        normalize: "none" (the paper) or "softmax".
        scale: multiplies the scores before normalization.

    Its layers are in `linears` (ModuleList of torch.nn.Linear), its activations in `activations`.

    Example:
        >>> unit = LocalActivationUnit(dim=16)
        >>> unit(torch.randn(2, 16), torch.randn(2, 5, 16), lengths=torch.tensor([5, 3])).shape
        torch.Size([2, 16])
    """

    def __init__(
        self, dim: int, hidden: tuple[int, ...] = (80, 40), activation: str = "sigmoid", features: str = "concat",
        normalize: str = "none", scale: float = 1.0, device=None, dtype=None,
    ):  # fmt: skip
        super().__init__()
        checks.one_of("activation", activation, ACTIVATIONS)
        checks.one_of("features", features, FEATURES)
        checks.one_of("normalize", normalize, NORMALIZATIONS)
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if len(hidden) > 3 or any(width < 1 for width in hidden):
            raise ValueError(f"hidden must be 0 to 3 widths of at least 1, got {tuple(hidden)}")
        self.dim, self.hidden, self.activation = dim, tuple(hidden), activation
        self.features, self.normalize, self.scale = features, normalize, float(scale)
        factory = {"device": device, "dtype": dtype}
        widths = [feature_width(dim, features), *hidden, 1]
        self.linears = nn.ModuleList(nn.Linear(a, b, **factory) for a, b in zip(widths[:-1], widths[1:], strict=True))
        make = {"prelu": lambda width: nn.PReLU(**factory), "dice": lambda width: Dice(width, **factory),
                "sigmoid": lambda width: nn.Sigmoid(), "relu": lambda width: nn.ReLU(),
                "tanh": lambda width: nn.Tanh(), "identity": lambda width: nn.Identity()}[activation]  # fmt: skip
        self.activations = nn.ModuleList(make(width) for width in hidden)

    def _activation_params(self) -> list[dict]:
        if self.activation == "prelu":
            return [{"slope": layer.weight} for layer in self.activations]
        if self.activation == "dice":
            return [{"alpha": layer.alpha, "mean": layer.running_mean, "var": layer.running_var, "eps": layer.eps,
                     "training": layer.training} for layer in self.activations]  # fmt: skip
        return [{} for _ in self.activations]

    def forward(
        self,
        query: torch.Tensor,
        history: torch.Tensor | Jagged | Padded,
        lengths: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        query_to_user: torch.Tensor | None = None,
        padding_side: str = "right",
        return_weights: bool = False,
    ):
        """Pools each candidate's history.

        Args:
            query: `[B, D]`, `[B, 1, D]` or `[B, C, D]` (C candidates per user), or `[Q, D]` with query_to_user.
            history: padded `[B, T, D]` with `lengths [B]` or `mask [B, T]` (true where valid; neither: all valid), or a
                Jagged with values `[N, D]`.
            query_to_user: `[Q]`, the history that each candidate attends to.
            padding_side: where the padding lies when `lengths` is given.
            return_weights: also return the attention weights.

        Returns:
            pooled in the shape of query; with return_weights also the weights: for a Jagged history a Jagged with one
            row per candidate, else `[B, T]`, `[B, C, T]` or `[Q, T]` with zeros on padding.
        """
        if isinstance(history, (Jagged, Padded)):
            if lengths is not None or mask is not None:
                raise ValueError(
                    "lengths and mask belong to a padded tensor, got them with a " + type(history).__name__
                )
        else:
            checks.is_tensor("history", history, 3, "[B, T, D]")
            history = Padded(history, lengths, mask, padding_side)
        checks.is_tensor("query", query, (2, 3), "[B, D], [B, 1, D] or [B, C, D]")
        shape = query.shape
        if query.dim() == 3:
            users = len(history) if isinstance(history, Jagged) else history.values.shape[0]
            if query_to_user is not None:
                raise ValueError(f"query must have shape [Q, D] when query_to_user is given, got {list(shape)}")
            if shape[0] != users:
                raise ValueError(f"query must have one entry per history ({users}) in dimension 0, got {shape[0]}")
            if shape[1] != 1:
                query_to_user = torch.arange(users, device=query.device).repeat_interleave(shape[1])
            query = query.reshape(-1, shape[2])
        result = attend(
            query, history, [layer.weight for layer in self.linears], [layer.bias for layer in self.linears],
            features=self.features, activation=self.activation, activation_params=self._activation_params(),
            normalize=self.normalize, scale=self.scale, query_to_user=query_to_user, return_weights=return_weights,
        )  # fmt: skip
        for layer, statistics in zip(self.activations, result.statistics, strict=True):
            if statistics is not None:
                layer.observe(*statistics)
        pooled = result.pooled.view(shape)
        if not return_weights:
            return pooled
        weights = result.weights
        if isinstance(weights, torch.Tensor) and len(shape) == 3:
            weights = weights.view(*shape[:2], -1)
        return pooled, weights

    def extra_repr(self) -> str:
        return (f"dim={self.dim}, hidden={self.hidden}, activation={self.activation!r}, features={self.features!r}, "
                f"normalize={self.normalize!r}, scale={self.scale}")  # fmt: skip
