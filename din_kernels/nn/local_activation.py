"""The local activation unit as a module."""

from __future__ import annotations

import torch
from torch import nn

from din_kernels import checks
from din_kernels.gather import Gather
from din_kernels.jagged import Jagged, Padded
from din_kernels.nn.dice import Dice
from din_kernels.ops.local_activation import (
    ACTIVATIONS,
    FEATURES,
    NORMALIZATIONS,
    STATISTICS,
    attend,
    feature_width,
)


def _flattened(query: torch.Tensor, users: int, query_to_user):
    """Candidates `[B, C, D]` as rows, and whose each of them is."""
    if query_to_user is not None:
        raise ValueError(f"query must have shape [Q, D] when query_to_user is given, got {list(query.shape)}")
    if query.shape[0] != users:
        raise ValueError(f"query must have one entry per history ({users}) in dimension 0, got {query.shape[0]}")
    if query.shape[1] != 1:
        query_to_user = torch.arange(users, device=query.device).repeat_interleave(query.shape[1])
    return query.reshape(-1, query.shape[2]), query_to_user


class LocalActivationUnit(nn.Module):
    """DIN's local activation unit (paper section 4.3): attention of candidates over variable-length histories.

    Args:
        dim: D, width of queries and behaviours.
        hidden: widths of the MLP's 0 to 3 hidden layers.
        activation: "sigmoid", "relu", "prelu", "tanh", "identity" or "dice", after every hidden layer.
        features: "concat" (q, k, q - k, q * k), "product" (q, k, q * k) or "outer" (q, k, vec(q k^T)).
        normalize: "none" (the paper) or "softmax".
        scale: multiplies the scores before normalization.
        stats: with Dice in training, statistics over "valid" pairs, or over all positions of a "padded" history.

    Its layers are in `linears` (ModuleList of torch.nn.Linear), its activations in `activations`.

    Example:
        >>> unit = LocalActivationUnit(dim=16)
        >>> unit(torch.randn(2, 16), torch.randn(2, 5, 16), lengths=torch.tensor([5, 3])).shape
        torch.Size([2, 16])
    """

    def __init__(
        self, dim: int, hidden: tuple[int, ...] = (80, 40), activation: str = "sigmoid", features: str = "concat",
        normalize: str = "none", scale: float = 1.0, device=None, dtype=None, *, stats: str = "valid",
    ):  # fmt: skip
        super().__init__()
        checks.one_of("activation", activation, ACTIVATIONS)
        checks.one_of("features", features, FEATURES)
        checks.one_of("normalize", normalize, NORMALIZATIONS)
        checks.one_of("stats", stats, STATISTICS)
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if len(hidden) > 3 or any(width < 1 for width in hidden):
            raise ValueError(f"hidden must be 0 to 3 widths of at least 1, got {tuple(hidden)}")
        self.dim, self.hidden, self.activation = dim, tuple(hidden), activation
        self.features, self.normalize, self.scale, self.stats = features, normalize, float(scale), stats
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
        query: torch.Tensor | Gather,
        history: torch.Tensor | Jagged | Padded | Gather,
        lengths: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        query_to_user: torch.Tensor | None = None,
        padding_side: str = "right",
        return_weights: bool = False,
        total_pairs: int | None = None,
    ):
        """Pools each candidate's history.

        Args:
            query: `[B, D]`, `[B, 1, D]` or `[B, C, D]` (C candidates per user), or `[Q, D]` with query_to_user; a
                Gather stands for `[B, D]` or `[Q, D]`.
            history: padded `[B, T, D]` with `lengths [B]` or `mask [B, T]` (true where valid; neither: all valid), or a
                Jagged with values `[N, D]`, a Gather with offsets, or a Padded.
            query_to_user: `[Q]`, the history that each candidate attends to.
            padding_side: where the padding lies when `lengths` is given.
            return_weights: also return the attention weights.
            total_pairs: their number, for a packed history with query_to_user, where it is known; saves a GPU wait.

        Returns:
            pooled in the shape of query; with return_weights also the weights: for a Jagged history a Jagged with one
            row per candidate, else `[B, T]`, `[B, C, T]` or `[Q, T]` with zeros on padding.
        """
        if isinstance(history, (Jagged, Padded, Gather)):
            if lengths is not None or mask is not None or padding_side != "right":
                raise ValueError(
                    "lengths, mask and padding_side belong to a padded tensor, got them with a "
                    + type(history).__name__
                )
        else:
            checks.is_tensor("history", history, 3, "[B, T, D]")
            history = Padded(history, lengths, mask, padding_side)
        shape = None
        if not isinstance(query, Gather):
            checks.is_tensor("query", query, (2, 3), "[B, D], [B, 1, D] or [B, C, D]")
            shape = query.shape
            if query.dim() == 3:
                query, query_to_user = _flattened(query, history.batch_size, query_to_user)
        result = attend(
            query, history, [layer.weight for layer in self.linears], [layer.bias for layer in self.linears],
            features=self.features, activation=self.activation, activation_params=self._activation_params(),
            normalize=self.normalize, scale=self.scale, query_to_user=query_to_user, return_weights=return_weights,
            stats=self.stats, total_pairs=total_pairs,
        )  # fmt: skip
        for layer, statistics in zip(self.activations, result.statistics, strict=True):
            if statistics is not None:
                layer.observe(*statistics)
        pooled = result.pooled if shape is None else result.pooled.view(shape)
        if not return_weights:
            return pooled
        weights = result.weights
        if isinstance(weights, torch.Tensor) and shape is not None and len(shape) == 3:
            weights = weights.view(*shape[:2], weights.shape[-1])
        return pooled, weights

    def extra_repr(self) -> str:
        return (f"dim={self.dim}, hidden={self.hidden}, activation={self.activation!r}, features={self.features!r}, "
                f"normalize={self.normalize!r}, scale={self.scale}, stats={self.stats!r}")  # fmt: skip
