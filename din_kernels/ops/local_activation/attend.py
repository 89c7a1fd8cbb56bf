"""The local activation unit as a public function, and the checks of its MLP."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch

from din_kernels import backends, checks
from din_kernels.backends.reference import local_activation as reference
from din_kernels.gather import Gather
from din_kernels.jagged import Jagged, Padded
from din_kernels.ops.local_activation.histories import (
    Source,
    check_rows,
    check_statistics,
    in_autocast_dtype,
    pair_layout,
    rows_of,
    source_of,
    weights_in_layout,
)
from din_kernels.ops.local_activation.registration import arithmetic_dtype, rows_in

FEATURES = ("concat", "product", "outer")
ACTIVATIONS = ("sigmoid", "relu", "prelu", "tanh", "identity", "dice")
NORMALIZATIONS = ("none", "softmax")
STATISTICS = ("valid", "padded")


def feature_width(dim: int, features: str) -> int:
    """Columns of phi(q, k): 4D for concat, 3D for product, 2D + D^2 for outer."""
    return {"concat": 4 * dim, "product": 3 * dim, "outer": 2 * dim + dim * dim}[features]


def _check_mlp(query, weights, biases, features, activation, activation_params):
    dim = query.width if isinstance(query, Gather) else query.shape[1]
    if len(weights) < 1 or len(weights) != len(biases):
        raise ValueError(
            f"weights and biases must be lists of the same length >= 1, got {len(weights)} and {len(biases)}"
        )
    if len(weights) > 4:
        raise ValueError(f"weights must hold 0 to 3 hidden layers and the output layer, got {len(weights)} entries")
    width = feature_width(dim, features)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        name = f"weights[{layer}]"
        checks.is_tensor(name, weight, 2, "[out, in]")
        checks.is_tensor(f"biases[{layer}]", bias, 1, "[out]")
        out = 1 if layer == len(weights) - 1 else weight.shape[0]
        came_from = f" (in = {width}: features={features!r} of D={dim})" if layer == 0 else f" (in = {width})"
        checks.has_shape(name, weight, (out, width), came_from)
        checks.has_shape(f"biases[{layer}]", bias, (out,))
        for label, tensor in ((name, weight), (f"biases[{layer}]", bias)):
            _check_weight_dtype(label, tensor, query)
            checks.same_device(label, tensor, "query", query)
        width = out
    hidden = [weight.shape[0] for weight in weights[:-1]]
    needed = {"prelu": ("slope",), "dice": ("alpha", "mean", "var")}.get(activation, ())
    params = list(activation_params or [{} for _ in hidden])
    if len(params) != len(hidden):
        raise ValueError(f"activation_params must hold one dict per hidden layer ({len(hidden)}), got {len(params)}")
    for layer, (given, width) in enumerate(zip(params, hidden, strict=True)):
        label = f"activation_params[{layer}]"
        if not isinstance(given, dict):
            raise TypeError(f"{label} must be a dict, got {type(given).__name__}")
        training = activation == "dice" and given.get("training", False)
        if activation == "dice":
            params[layer] = given = {"eps": 1e-8, "training": False} | given
        for key in needed:
            if given.get(key) is None:
                if training and key != "alpha":
                    continue
                raise ValueError(f"{label} must have {key!r} for activation={activation!r}, got {sorted(given)}")
            checks.is_tensor(f"{label}[{key!r}]", given[key], 1, f"[{width}] or [1]")
            if given[key].shape[0] not in (1, width):
                raise ValueError(f"{label}[{key!r}] must have shape [{width}] or [1], got {list(given[key].shape)}")
            checks.same_device(f"{label}[{key!r}]", given[key], "query", query)
    return params


def _check_weight_dtype(label: str, tensor: torch.Tensor, query: torch.Tensor | Gather) -> None:
    allowed = {query.dtype, arithmetic_dtype(query.dtype)}
    if tensor.dtype not in allowed:
        expected = " or ".join(str(dtype) for dtype in (query.dtype, *sorted(allowed - {query.dtype}, key=str)))
        raise TypeError(f"{label} must have dtype {expected} (query: {query.dtype}), got {tensor.dtype}")


class Attended(NamedTuple):
    """What `attend` returns."""

    pooled: torch.Tensor  # [Q, D]
    weights: Jagged | torch.Tensor | None  # in the history's layout
    statistics: list  # per hidden layer: (mean [H], var [H], count) with Dice in training, else None


def _dice_training(activation: str, params: list[dict]) -> bool | str:
    """Whether the hidden layers take batch statistics: all (True), none (False) or "some"."""
    training = {bool(layer["training"]) for layer in params} if activation == "dice" else set()
    return "some" if len(training) == 2 else training == {True}


def _sizes(query: Source, rows: Source, weights) -> dict[str, tuple[int, ...]]:
    """Widths for a Request; while tracing, index() makes numbers of symbols."""

    def numbers(tensors, axis):
        return tuple(operator.index(tensor.shape[axis]) for tensor in tensors)

    return {"query_widths": numbers(query.tables, 1), "row_widths": numbers(rows.tables, 1),
            "hidden": numbers(weights[:-1], 0)}  # fmt: skip


def attend(
    query, history, weights, biases, *, features="concat", activation="sigmoid", activation_params=None,
    normalize="none", scale=1.0, query_to_user=None, return_weights=False, total_pairs=None, stats="valid",
) -> Attended:  # fmt: skip
    """As `local_activation`, and also returns the batch statistics of Dice in training; modules build on this."""
    for name, value, known in (
        ("features", features, FEATURES), ("activation", activation, ACTIVATIONS),
        ("normalize", normalize, NORMALIZATIONS), ("stats", stats, STATISTICS),
    ):  # fmt: skip
        checks.one_of(name, value, known)
    query, history = in_autocast_dtype(query, history)
    check_rows(query, history, query_to_user)
    params = _check_mlp(query, weights, biases, features, activation, activation_params)
    dice_training = _dice_training(activation, params)
    check_statistics(stats, history)
    layout = rows_of(history, padded_statistics=stats == "padded" and bool(dice_training))
    if query_to_user is not None:
        query_to_user = query_to_user.to(torch.int64).contiguous()
    source = source_of(query)
    queries = rows_in(*source)
    pair_begin, pairs = None, 0
    if return_weights:
        rows = rows_in(*layout.source)
        pair_begin, pairs = pair_layout(layout, query_to_user, queries, rows, total_pairs)
        pair_begin = pair_begin.contiguous()
    request = backends.Request("local_activation", query.device.type, query.dtype, {
        "features": features, "activation": activation, "normalize": normalize,
        "dice_training": dice_training, "query_to_user": query_to_user is not None,
        "gather": len(source.ids) + len(layout.source.ids) > 0, "stats": stats,
        "layout": "packed" if layout.width is None else "padded" if layout.row_index is None else "masked",
        **_sizes(source, layout.source, weights), "backward": torch.is_grad_enabled(),
    })  # fmt: skip
    backend = backends.select(request)
    if backend == "reference":
        pooled, pair_weights, statistics = reference.local_activation(
            query.rows() if isinstance(query, Gather) else query,
            history.rows() if isinstance(history, Gather) else layout.source.tables[0],
            *layout[1:5], query_to_user, pair_begin, pairs, list(weights), list(biases), params,
            features, activation, normalize, float(scale),
        )  # fmt: skip
    else:
        keys = {"prelu": ("slope",), "dice": ("alpha",) if dice_training else ("alpha", "mean", "var")}
        flat = [layer[key] for layer in params for key in keys.get(activation, ())]
        eps = [float(layer["eps"]) for layer in params] if activation == "dice" else []
        gathers = {each.sparse for each in (query, history) if isinstance(each, Gather)}
        if len(gathers) == 2:
            raise ValueError("query and history must agree in sparse, got a Gather with True and one with False")
        pooled, _, pair_weights, batch = torch.ops.din_kernels.local_activation(
            *source, *layout.source, *layout[1:5], query_to_user, pair_begin, pairs, list(weights), list(biases), flat,
            eps, dice_training, gathers == {True}, features, activation, normalize, float(scale),
            backend,
        )  # fmt: skip
        pair_weights = pair_weights.to(pooled.dtype)
        statistics = [None] * len(params)
        if dice_training:
            count = (layout.length if query_to_user is None else layout.length[query_to_user]).sum()
            widths = [bias.shape[0] for bias in biases[:-1]]
            statistics = [(*pair, count) for pair in zip(*(rows.split(widths) for rows in batch), strict=True)]
    if return_weights:
        pair_weights = weights_in_layout(pair_weights, history, layout, pair_begin, query_to_user, queries)
    return Attended(pooled, pair_weights if return_weights else None, statistics)


def local_activation(
    query: torch.Tensor | Gather,
    history: Jagged | Padded | Gather,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    *,
    features: str = "concat",
    activation: str = "sigmoid",
    activation_params: list[dict] | None = None,
    normalize: str = "none",
    scale: float = 1.0,
    query_to_user: torch.Tensor | None = None,
    return_weights: bool = False,
    total_pairs: int | None = None,
    stats: str = "valid",
):
    """Attention-pooled histories of DIN's local activation unit (paper section 4.3, equation 3).

    pooled_i = sum_t w_it k_t over the valid behaviours k_t of candidate i's user, where
    w = normalize(scale * MLP(phi(q_i, k_t))). An empty history pools to exactly 0.

    Args:
        query: `[Q, D]` floating point, the candidates q; or a `Gather` of Q rows.
        history: `Jagged` with values `[N, D]`, `Padded` with values `[B, T, D]`, or `Gather` with offsets; dtype and
            device of query. bf16 and fp16 are computed in fp32.
        weights: torch.nn.Linear weights `[out, in]`, 0 to 3 hidden layers and the output layer to 1; the first has
            in = 4D ("concat": q, k, q - k, q * k), 3D ("product": q, k, q * k) or 2D + D * D ("outer": q, k,
            vec(q k^T)). dtype of query, or fp32 with bf16 and fp16.
        biases: one `[out]` per weight.
        features: "concat", "product" or "outer".
        activation: "sigmoid", "relu", "prelu", "tanh", "identity" or "dice", after every hidden layer.
        activation_params: one dict per hidden layer; PReLU: slope `[1]` or `[H]`; Dice: alpha, mean, var `[H]` or
            `[1]`, eps (1e-8), training (False; True takes mean and variance over the valid pairs of this call).
        normalize: "none" (the paper) or "softmax" over each candidate's behaviours.
        scale: multiplies the scores before normalization.
        query_to_user: `[Q]` int64 or int32, the history that each candidate attends to; None: candidate i to history i.
        return_weights: also return the weights w.
        total_pairs: number of weights for a Jagged history with query_to_user, where it is known; saves a GPU wait.
        stats: rows in the batch statistics of Dice in training: "valid" pairs alone, or "padded": all T positions of a
            Padded history, as BatchNorm in a padded implementation sees them.

    Returns:
        pooled `[Q, D]`; with return_weights also the weights in the history's layout: a Jagged `[N]` (with
        query_to_user one row per candidate), or `[Q, T]` with zeros on padding.

    Raises:
        TypeError, ValueError, IndexError: naming the argument, what was expected and what came.
        din_kernels.BackendError: a forced backend cannot serve the call.

    Example:
        >>> history = Jagged(torch.randn(5, 8), torch.tensor([0, 2, 2, 5]))
        >>> weights, biases = [torch.randn(4, 32), torch.randn(1, 4)], [torch.zeros(4), torch.zeros(1)]
        >>> local_activation(torch.randn(3, 8), history, weights, biases).shape
        torch.Size([3, 8])
    """
    result = attend(
        query, history, weights, biases, features=features, activation=activation, activation_params=activation_params,
        normalize=normalize, scale=scale, query_to_user=query_to_user, return_weights=return_weights,
        total_pairs=total_pairs, stats=stats,
    )  # fmt: skip
    return (result.pooled, result.weights) if return_weights else result.pooled
