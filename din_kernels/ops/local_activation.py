"""The local activation unit as a torch op: checks, layout, fake, autograd and the public function."""

from __future__ import annotations

from typing import NamedTuple

import torch

from din_kernels import backends, checks
from din_kernels.backends.reference import local_activation as reference
from din_kernels.jagged import Jagged, Padded
from din_kernels.ops.schemas import library

FEATURES = ("concat", "product", "outer")
ACTIVATIONS = ("sigmoid", "relu", "prelu", "tanh", "identity", "dice")
NORMALIZATIONS = ("none", "softmax")


def feature_width(dim: int, features: str) -> int:
    """Columns of phi(q, k): 4D for concat, 3D for product, 2D + D^2 for outer."""
    return {"concat": 4 * dim, "product": 3 * dim, "outer": 2 * dim + dim * dim}[features]


# --- implementation, fake and autograd of the registered ops ---------------------------------------------------------


def _check_values(rows, begin, length, row_index, query_to_user, pair_begin, total_pairs):
    """Everything that the kernels would follow out of bounds, checked where the values are at hand."""
    if not checks.values_readable(begin):
        return
    capacity = rows.shape[0] if row_index is None else row_index.shape[0]
    if begin.numel() and (int(length.min()) < 0 or int(begin.min()) < 0 or int((begin + length).max()) > capacity):
        raise ValueError(f"begin and length must stay within the {capacity} history rows, got rows up to "
                         f"{int((begin + length).max())} and lengths from {int(length.min())}")  # fmt: skip
    if row_index is not None and row_index.numel():
        low, high = int(row_index.min()), int(row_index.max())
        if low < 0 or high >= rows.shape[0]:
            raise IndexError(f"row_index must lie in 0..{rows.shape[0] - 1}, got {low}..{high}")
    if query_to_user is not None and query_to_user.numel():
        low, high = int(query_to_user.min()), int(query_to_user.max())
        if low < 0 or high >= begin.shape[0]:
            raise IndexError(f"query_to_user must lie in 0..{begin.shape[0] - 1} (U users), got {low}..{high}")
    if pair_begin is not None and pair_begin.numel():
        last = int((pair_begin + (length if query_to_user is None else length[query_to_user])).max())
        if int(pair_begin.min()) < 0 or last > total_pairs:
            raise ValueError(f"pair_begin must keep all weights within total_pairs ({total_pairs}), got up to {last}")


def _forward(query, rows, begin, length, row_index, query_to_user, pair_begin, total_pairs, *options):
    _check_values(rows, begin, length, row_index, query_to_user, pair_begin, total_pairs)
    *options, backend = options
    kernels = backends.module(backend, "local_activation")
    return kernels.forward(
        query, rows, begin, length, row_index, query_to_user, pair_begin, total_pairs, *options
    )  # fmt: skip


def _backward(*arguments):
    *arguments, backend = arguments
    return backends.module(backend, "local_activation").backward(*arguments)


def _forward_fake(query, rows, begin, length, row_index, query_to_user, pair_begin, total_pairs, weights, biases,
                  params, eps, features, activation, normalize, scale, backend):  # fmt: skip
    return (
        query.new_empty(query.shape),
        query.new_empty(query.shape[0] if normalize == "softmax" else 0),
        query.new_empty(total_pairs),
    )


def _backward_fake(grad_pooled, grad_pair_weights, query, rows, begin, length, row_index, query_to_user, pair_begin,
                   total_pairs, weights, biases, params, eps, features, activation, normalize, scale, pooled,
                   logsumexp, pair_weights, need_query, need_rows, backend):  # fmt: skip
    return (
        query.new_empty(query.shape if need_query else 0),
        rows.new_empty(rows.shape if need_rows else 0),
        *([t.new_empty(t.shape) for t in group] for group in (weights, biases, params)),
    )


def _setup_context(ctx, inputs, output):
    (query, rows, begin, length, row_index, query_to_user, pair_begin, ctx.total_pairs, weights, biases, params,
     *ctx.options) = inputs  # fmt: skip
    ctx.sizes = [len(weights), len(biases), len(params)]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, rows, begin, length, row_index, query_to_user, pair_begin,
                          *weights, *biases, *params, *output)  # fmt: skip


def _autograd(ctx, grad_pooled, _, grad_pair_weights):
    query, rows, begin, length, row_index, query_to_user, pair_begin, *rest = ctx.saved_tensors
    groups = []
    for size in (*ctx.sizes, 3):
        groups.append(list(rest[:size]))
        rest = rest[size:]
    weights, biases, params, (pooled, logsumexp, pair_weights) = groups
    if grad_pooled is None:
        grad_pooled = torch.zeros_like(pooled)
    *options, backend = ctx.options
    needs = ctx.needs_input_grad
    grad_query, grad_rows, *grads = torch.ops.din_kernels.local_activation_backward(
        grad_pooled, grad_pair_weights, query, rows, begin, length, row_index, query_to_user, pair_begin,
        ctx.total_pairs, weights, biases, params, *options, pooled, logsumexp, pair_weights, needs[0], needs[1],
        backend,
    )  # fmt: skip
    return (
        grad_query if needs[0] else None,
        grad_rows if needs[1] else None,
        *(None,) * 6,
        *grads,
        None if options[0] else [],  # eps: an empty list passes for a list of tensors
        *(None,) * len(options),
    )


def _no_double_backward(ctx, *grads):
    raise NotImplementedError(
        "local_activation has no double backward: its gradients cannot be differentiated again; "
        "use din_kernels.use_backend('reference') for that"
    )


def _no_vmap(info, in_dims, *args):
    raise NotImplementedError(
        "local_activation does not support torch.func.vmap: pass all candidates in one call (query_to_user)"
    )


library.impl("local_activation", _forward, "CompositeExplicitAutograd")
library.impl("local_activation_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("din_kernels::local_activation", _forward_fake, lib=library)
torch.library.register_fake("din_kernels::local_activation_backward", _backward_fake, lib=library)
torch.library.register_autograd("din_kernels::local_activation", _autograd, setup_context=_setup_context, lib=library)
torch.library.register_autograd("din_kernels::local_activation_backward", _no_double_backward, lib=library)
torch.library.register_vmap("din_kernels::local_activation", _no_vmap, lib=library)
torch.library.register_vmap("din_kernels::local_activation_backward", _no_vmap, lib=library)


# --- layouts: how a history becomes rows, begin, length ---------------------------------------------------------------


class Rows(NamedTuple):
    """A history as the op takes it."""

    rows: torch.Tensor  # [M, D]
    begin: torch.Tensor  # [U]
    length: torch.Tensor  # [U]
    row_index: torch.Tensor | None  # [capacity], for an arbitrary mask: each user's valid rows first
    width: int | None  # T of a padded history


def _rows_of(history: Jagged | Padded) -> Rows:
    if isinstance(history, Jagged):
        return Rows(history.values, history.offsets[:-1].contiguous(), history.lengths(), None, None)
    batch, width = history.values.shape[:2]
    rows = history.values.reshape(batch * width, *history.values.shape[2:])
    begin = torch.arange(batch, device=rows.device) * width
    if history.mask is not None:
        order = torch.argsort(history.mask.logical_not().to(torch.uint8), dim=1, stable=True)
        return Rows(rows, begin, history.mask.sum(1), (begin.unsqueeze(1) + order).flatten(), width)
    if history.lengths is None:
        return Rows(rows, begin, torch.full_like(begin, width), None, width)
    length = history.lengths.to(torch.int64)
    return Rows(rows, begin if history.padding_side == "right" else begin + width - length, length, None, width)


def _pair_layout(layout: Rows, query_to_user, queries: int, total_pairs: int | None):
    """Where the weights of each candidate start, and how many there are in all."""
    if layout.width is not None:
        user = slice(None) if query_to_user is None else query_to_user
        left = layout.begin[user] % layout.width if layout.width else layout.begin[user]
        return torch.arange(queries, device=left.device) * layout.width + left, queries * layout.width
    if query_to_user is None:
        return layout.begin, layout.rows.shape[0]
    per_query = layout.length[query_to_user]
    end = per_query.cumsum(0)
    if total_pairs is None:
        total_pairs = int(end[-1]) if queries else 0
    return end - per_query, total_pairs


def _weights_in_layout(pair_weights, history, layout: Rows, pair_begin, query_to_user, queries: int):
    """Weights in the history's own layout: Jagged, or [B or Q, T] with zeros on padding."""
    if layout.width is not None:
        weights = pair_weights.view(queries, layout.width)
        if layout.row_index is not None:
            column = layout.row_index.view(-1, layout.width) - layout.begin.unsqueeze(1)
            column = column if query_to_user is None else column[query_to_user]
            weights = torch.zeros_like(weights).scatter(1, column, weights)
        return weights
    if query_to_user is None:
        return Jagged._trusted(pair_weights, history.offsets)
    end = pair_begin + layout.length[query_to_user]
    return Jagged._trusted(pair_weights, torch.cat([end.new_zeros(1), end]))


# --- checks of the public function ------------------------------------------------------------------------------------


def _check_mlp(query, weights, biases, features, activation, activation_params):
    dim = query.shape[1]
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
            checks.same_dtype(label, tensor, "query", query)
            checks.same_device(label, tensor, "query", query)
        width = out
    hidden = [weight.shape[0] for weight in weights[:-1]]
    needed = {"prelu": ("slope",), "dice": ("alpha", "mean", "var")}.get(activation, ())
    params = list(activation_params or [{} for _ in hidden])
    if len(params) != len(hidden):
        raise ValueError(f"activation_params must hold one dict per hidden layer ({len(hidden)}), got {len(params)}")
    for layer, (given, width) in enumerate(zip(params, hidden, strict=True)):
        label = f"activation_params[{layer}]"
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


def _check_call(query, history, weights, biases, features, activation, normalize, query_to_user):
    checks.one_of("features", features, FEATURES)
    checks.one_of("activation", activation, ACTIVATIONS)
    checks.one_of("normalize", normalize, NORMALIZATIONS)
    checks.is_tensor("query", query, 2, "[Q, D]")
    checks.is_floating("query", query)
    if not isinstance(history, (Jagged, Padded)):
        raise TypeError(f"history must be a din_kernels.Jagged or din_kernels.Padded, got {type(history).__name__}")
    values, dim = history.values, query.shape[1]
    trailing = 1 if isinstance(history, Jagged) else 2
    if values.dim() != trailing + 1 or values.shape[-1] != dim:
        expected = f"[N, {dim}]" if trailing == 1 else f"[B, T, {dim}]"
        raise ValueError(f"history must have shape {expected} (D of query), got {list(values.shape)}")
    checks.same_dtype("history", values, "query", query)
    checks.same_device("history", values, "query", query)
    users = len(history) if isinstance(history, Jagged) else values.shape[0]
    if query_to_user is None:
        if query.shape[0] != users:
            raise ValueError(
                f"query must have one row per history ({users}) unless query_to_user is given, got {query.shape[0]}"
            )
    else:
        checks.is_tensor("query_to_user", query_to_user, 1, "[Q]")
        checks.is_index("query_to_user", query_to_user)
        checks.has_shape("query_to_user", query_to_user, (query.shape[0],), " (one per query)")
        checks.same_device("query_to_user", query_to_user, "query", query)
        if checks.values_readable(query_to_user) and query_to_user.numel():
            low, high = int(query_to_user.min()), int(query_to_user.max())
            if low < 0 or high >= users:
                raise IndexError(f"query_to_user must lie in 0..{users - 1} ({users} histories), got {low}..{high}")


# --- public function --------------------------------------------------------------------------------------------------


class Attended(NamedTuple):
    """What `attend` returns."""

    pooled: torch.Tensor  # [Q, D]
    weights: Jagged | torch.Tensor | None  # in the history's layout
    statistics: list  # per hidden layer: (mean [H], var [H], count) with Dice in training, else None


def attend(
    query, history, weights, biases, *, features="concat", activation="sigmoid", activation_params=None,
    normalize="none", scale=1.0, query_to_user=None, return_weights=False, total_pairs=None,
) -> Attended:  # fmt: skip
    """As `local_activation`, and also returns the batch statistics of Dice in training; modules build on this."""
    _check_call(query, history, weights, biases, features, activation, normalize, query_to_user)
    params = _check_mlp(query, weights, biases, features, activation, activation_params)
    layout = _rows_of(history)
    if query_to_user is not None:
        query_to_user = query_to_user.to(torch.int64).contiguous()
    queries = query.shape[0]
    pair_begin, pairs = None, 0
    if return_weights:
        pair_begin, pairs = _pair_layout(layout, query_to_user, queries, total_pairs)
        pair_begin = pair_begin.contiguous()
    request = backends.Request("local_activation", query.device.type, query.dtype, {
        "features": features, "activation": activation, "normalize": normalize, "hidden_layers": len(weights) - 1,
        "dice_training": activation == "dice" and any(layer["training"] for layer in params),
        "query_to_user": query_to_user is not None,
        "layout": "packed" if layout.width is None else "padded" if layout.row_index is None else "masked",
    })  # fmt: skip
    backend = backends.select(request)
    if backend == "reference":
        pooled, pair_weights, statistics = reference.local_activation(
            query, *layout[:4], query_to_user, pair_begin, pairs, list(weights), list(biases), params,
            features, activation, normalize, float(scale),
        )  # fmt: skip
    else:
        keys = {"prelu": ("slope",), "dice": ("alpha", "mean", "var")}.get(activation, ())
        flat = [layer[key].to(query.dtype) for layer in params for key in keys]
        eps = [float(layer["eps"]) for layer in params] if activation == "dice" else []
        pooled, _, pair_weights = torch.ops.din_kernels.local_activation(
            query, *layout[:4], query_to_user, pair_begin, pairs, list(weights), list(biases), flat, eps,
            features, activation, normalize, float(scale), backend,
        )  # fmt: skip
        statistics = [None] * len(params)
    if return_weights:
        pair_weights = _weights_in_layout(pair_weights, history, layout, pair_begin, query_to_user, queries)
    return Attended(pooled, pair_weights if return_weights else None, statistics)


def local_activation(
    query: torch.Tensor,
    history: Jagged | Padded,
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
):
    """Attention-pooled histories of DIN's local activation unit (paper section 4.3, equation 3).

    pooled_i = sum_t w_it k_t over the valid behaviours k_t of candidate i's user, where
    w = normalize(scale * MLP(phi(q_i, k_t))). An empty history pools to exactly 0.

    Args:
        query: `[Q, D]` floating point, the candidates q.
        history: `Jagged` with values `[N, D]`, or `Padded` with values `[B, T, D]`; dtype and device of query.
        weights: torch.nn.Linear weights `[out, in]`, 0 to 3 hidden layers and the output layer to 1; the first has
            in = 4D ("concat": q, k, q - k, q * k), 3D ("product": q, k, q * k) or 2D + D * D ("outer": q, k,
            vec(q k^T)).
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
        total_pairs=total_pairs,
    )  # fmt: skip
    return (result.pooled, result.weights) if return_weights else result.pooled
