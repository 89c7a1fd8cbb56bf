"""The local activation unit as a module."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from din_kernels import checks
from din_kernels.gather import Gather
from din_kernels.jagged import Jagged, Padded
from din_kernels.nn.by_modules import KINDS, attend_by_modules, beyond_kernels
from din_kernels.ops.local_activation import (
    ACTIVATIONS,
    FEATURES,
    NORMALIZATIONS,
    STATISTICS,
    Attended,
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
        activation: "sigmoid", "relu", "prelu", "tanh", "silu", "identity" or "dice", after every hidden layer.
        features: "concat" (q, k, q - k, q * k), "product" (q, k, q * k) or "outer" (q, k, vec(q k^T)).
        normalize: "none" (the paper) or "softmax".
        scale: multiplies the scores before normalization.
        stats: with Dice in training, statistics over "valid" pairs, or over all positions of a "padded" history.

    Its layers are in `linears` (ModuleList of torch.nn.Linear), its activations in `activations`. The fused call reads
    their parameters; `torch.nn.utils.parametrize` and `torch.func.functional_call` reach it. A unit whose submodules
    were replaced, carry hooks (`torch.nn.utils.prune` works by one) or hold an affine Dice computes by calling them one
    by one, with the features of every pair in memory, and warns once; where a backend other than the reference is
    forced it raises `BackendError`. `torch.ao.quantization.quantize_dynamic` leaves the layers alone, as it does those
    of torch.nn.MultiheadAttention.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    Example:
        >>> unit = LocalActivationUnit(dim=16)
        >>> unit(torch.randn(2, 16), torch.randn(2, 5, 16), lengths=torch.tensor([5, 3])).shape
        torch.Size([2, 16])
    """

    _warned = False  # that submodules are called one by one

    def __init__(
        self,
        dim: int,
        hidden: tuple[int, ...] = (80, 40),
        activation: str = "sigmoid",
        features: str = "concat",
        normalize: str = "none",
        scale: float = 1.0,
        device=None,
        dtype=None,
        *,
        stats: str = "valid",
    ):
        super().__init__()
        checks.one_of("activation", activation, ACTIVATIONS)
        checks.one_of("features", features, FEATURES)
        checks.one_of("normalize", normalize, NORMALIZATIONS)
        checks.one_of("stats", stats, STATISTICS)
        checks.size("dim", dim)
        checks.number("scale", scale)
        checks.widths("hidden", hidden, at_most=3)
        checks.device("device", device)
        checks.floating_dtype("dtype", dtype)
        self.dim, self.hidden, self.activation = dim, tuple(hidden), activation
        self.features, self.normalize, self.scale, self.stats = features, normalize, float(scale), stats
        factory = {"device": device, "dtype": dtype}
        widths = [feature_width(dim, features), *hidden, 1]
        # quantize_dynamic would replace torch.nn.Linear itself by a module without a weight tensor.
        self.linears = nn.ModuleList(
            NonDynamicallyQuantizableLinear(a, b, **factory) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.activations = nn.ModuleList(KINDS[activation].make(width, **factory) for width in hidden)

    def reset_parameters(self) -> None:
        """Initializes the layers anew, and activations with parameters or running statistics."""
        for layer in (*self.linears.modules(), *self.activations.modules()):
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()

    def _activation_params(self) -> list[dict]:
        attributes = KINDS[self.activation].params
        if not attributes:
            return [{} for _ in self.hidden]
        return [{key: getattr(layer, name) for key, name in attributes.items()} for layer in self.activations]

    def _attend(self, query, history, query_to_user, return_weights: bool, total_pairs: int | None) -> Attended:
        """The fused call where it can stand for the submodules, else one call of each of them."""
        linears = self.linears  # asked for once: nn.Module searches for its attributes
        reason = beyond_kernels(linears, self.activations, self.activation)
        if reason is not None:
            if not self._warned and not torch.compiler.is_compiling():
                self._warned = True
                words = "LocalActivationUnit calls its submodules one by one, which takes more time and memory: "
                warnings.warn(words + reason, UserWarning, stacklevel=4)
            return attend_by_modules(self, reason, query, history, query_to_user, return_weights, total_pairs)
        weights = [layer.weight for layer in linears]
        biases = [layer.bias for layer in linears]
        if any([bias is None for bias in biases]):
            pairs = zip(biases, weights, strict=True)
            biases = [weight.new_zeros(weight.shape[0]) if bias is None else bias for bias, weight in pairs]
        result = attend(
            query,
            history,
            weights,
            biases,
            features=self.features,
            activation=self.activation,
            activation_params=self._activation_params(),
            normalize=self.normalize,
            scale=self.scale,
            query_to_user=query_to_user,
            return_weights=return_weights,
            total_pairs=total_pairs,
            stats=self.stats,
        )
        if any(result.statistics):
            for layer, statistics in zip(self.activations, result.statistics, strict=True):
                layer.observe(*statistics)
        return result

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
        checks.one_of("padding_side", padding_side, ("right", "left"))
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
        result = self._attend(query, history, query_to_user, return_weights, total_pairs)
        pooled = result.pooled if shape is None or len(shape) == 2 else result.pooled.view(shape)
        if not return_weights:
            return pooled
        weights = result.weights
        if isinstance(weights, torch.Tensor) and shape is not None and len(shape) == 3:
            weights = weights.view(*shape[:2], weights.shape[-1])
        return pooled, weights

    def extra_repr(self) -> str:
        names = ("dim", "hidden", "activation", "features", "normalize", "scale", "stats")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
