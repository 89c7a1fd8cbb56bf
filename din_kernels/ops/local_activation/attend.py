"""The local activation unit as a public function, and as modules call it."""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import torch

from din_kernels import backends, checks, options
from din_kernels.backends.calls import LocalActivationCall
from din_kernels.backends.reference import local_activation as reference
from din_kernels.gather import Gather
from din_kernels.inference import savable
from din_kernels.jagged import Jagged, Padded
from din_kernels.ops.direct import run
from din_kernels.ops.local_activation.checks import Layers, check_layers, check_options, check_rows
from din_kernels.ops.local_activation.histories import (
    Rows,
    check_statistics,
    in_autocast_dtype,
    pair_layout,
    rows_of,
    source_of,
    weights_in_layout,
)
from din_kernels.ops.local_activation.registration import OP


class Attended(NamedTuple):
    """What `attend` returns."""

    pooled: torch.Tensor  # [Q, D]
    weights: Jagged | torch.Tensor | None  # in the history's layout
    statistics: list  # per hidden layer: (mean [H], var [H], count) with Dice in training, else None


def attend(
    query,
    history,
    weights,
    biases,
    *,
    features="concat",
    activation="sigmoid",
    activation_params=None,
    normalize="none",
    scale=1.0,
    query_to_user=None,
    return_weights=False,
    total_pairs=None,
    stats="valid",
) -> Attended:
    """As `local_activation`, and also returns the batch statistics of Dice in training; modules build on this."""
    check_options(features, activation, normalize, stats)
    checks.number("scale", scale)
    checks.flag("return_weights", return_weights)
    if total_pairs is not None:
        checks.integer("total_pairs", total_pairs, at_least=0)
    query, history = in_autocast_dtype(query, history)
    check_rows(query, history, query_to_user)
    layers = check_layers(query, weights, biases, features, activation, activation_params)
    check_statistics(stats, history)
    source = source_of(query)
    layout = rows_of(history, padded_statistics=stats == "padded" and bool(layers.batch_statistics))
    if query_to_user is not None:
        query_to_user = query_to_user.to(torch.int64).contiguous()
    pairs = pair_layout(layout, query_to_user, source.count, total_pairs) if return_weights else None
    call = LocalActivationCall(
        query_tables=source.tables,
        query_ids=source.ids,
        history_tables=layout.source.tables,
        history_ids=layout.source.ids,
        begin=layout.begin,
        length=layout.length,
        row_index=layout.row_index,
        row_mask=layout.row_mask,
        query_to_user=query_to_user,
        pair_begin=None if pairs is None else pairs.begin.contiguous(),
        total_pairs=0 if pairs is None else pairs.total,
        weights=layers.weights,
        biases=layers.biases,
        params=[],
        eps=[],
        dice_training=layers.batch_statistics is True,
        sparse_grad=False,
        query_padding=source.padding,
        history_padding=layout.source.padding,
        features=features,
        activation=activation,
        normalize=normalize,
        scale=float(scale),
    )
    backend = backends.select(_request(call, layers, layout, stats))
    if backends.by_reference(backend, call.device):
        pooled, pair_weights, statistics = _by_reference(call, layers, query, history)
    else:
        pooled, pair_weights, statistics = _by_kernels(call, layers, query, history, backend)
    if pairs is not None:
        pair_weights = weights_in_layout(pair_weights, history, layout, pairs.begin, query_to_user, source.count)
    return Attended(pooled, pair_weights if return_weights else None, statistics)


class _Options(NamedTuple):
    """What a call of the unit asks of a backend."""

    features: str
    activation: str
    normalize: str
    dice_training: bool | str  # whether the hidden layers of Dice take batch statistics: all, none, or "some"
    query_to_user: bool
    gather: bool
    stats: str
    layout: str
    query_widths: tuple[int, ...]
    history_widths: tuple[int, ...]
    hidden: tuple[int, ...]
    backward: bool


def _request(call: LocalActivationCall, layers: Layers, layout: Rows, stats: str) -> backends.Request:
    asked = _Options(
        features=call.features,
        activation=call.activation,
        normalize=call.normalize,
        dice_training=layers.batch_statistics,
        query_to_user=call.query_to_user is not None,
        gather=len(call.query_ids) + len(call.history_ids) > 0,
        stats=stats,
        layout="packed" if layout.width is None else "padded" if layout.row_index is None else "masked",
        # While tracing, index() makes numbers of symbols.
        query_widths=tuple([operator.index(table.shape[1]) for table in call.query_tables]),
        history_widths=tuple([operator.index(table.shape[1]) for table in call.history_tables]),
        hidden=tuple([operator.index(width) for width in layers.hidden]),
        backward=torch.is_grad_enabled(),
    )
    made = _made_request if torch.compiler.is_compiling() else _request_as_before
    return made(call.device.type, call.dtype, asked)


def _made_request(device: str, dtype: torch.dtype, asked: _Options) -> backends.Request:
    return backends.Request("local_activation", device, dtype, asked._asdict())


_request_as_before = functools.lru_cache(maxsize=1000)(_made_request)


def _by_reference(call: LocalActivationCall, layers: Layers, query, history):
    """pooled, the pairs' weights and statistics; every layer of Dice takes its own kind of statistics."""
    call, params = savable(call), savable(layers.params)
    return reference.local_activation(
        query.rows() if isinstance(query, Gather) else call.query_tables[0],
        history.rows() if isinstance(history, Gather) else call.history_tables[0],
        call.begin,
        call.length,
        call.row_index,
        call.row_mask,
        call.query_to_user,
        call.pair_begin,
        call.total_pairs,
        call.weights,
        call.biases,
        params,
        call.features,
        call.activation,
        call.normalize,
        call.scale,
    )


def _by_kernels(call: LocalActivationCall, layers: Layers, query, history, backend: str):
    """As `_by_reference`, by the registered op."""
    gathers = {each.sparse for each in (query, history) if isinstance(each, Gather)}
    if len(gathers) == 2:
        raise ValueError("query and history must agree in sparse, got a Gather with True and one with False")
    if True in gathers:
        call = call._replace(sparse_grad=True)
    if call.param_names:
        call = call._replace(params=[layer[name] for layer in layers.params for name in call.param_names])
    if options.ACTIVATIONS[call.activation].statistics:
        call = call._replace(eps=[float(layer["eps"]) for layer in layers.params])
    result = run(OP, call, backend)
    statistics: list = [None] * len(layers.params)
    if call.dice_training:
        count = (call.length if call.query_to_user is None else call.length[call.query_to_user]).sum()
        means, variances = (rows.split(call.hidden) for rows in result.statistics)
        statistics = [(mean, var, count) for mean, var in zip(means, variances, strict=True)]
    pair_weights = result.pair_weights
    if pair_weights.dtype != result.pooled.dtype:
        pair_weights = pair_weights.to(result.pooled.dtype)
    return result.pooled, pair_weights, statistics


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
        activation: "sigmoid", "relu", "prelu", "tanh", "silu", "identity" or "dice", after every hidden layer.
        activation_params: one dict per hidden layer; PReLU: slope `[1]` or `[H]`; Dice: alpha, mean, var `[H]` or
            `[1]`, eps (1e-8), training (False; True takes mean and variance over the valid pairs of this call).
        normalize: "none" (the paper) or "softmax" over each candidate's behaviours.
        scale: multiplies the scores before normalization.
        query_to_user: `[Q]` int64 or int32, the history that each candidate attends to; None: candidate i to history i.
        return_weights: also return the weights w.
        total_pairs: number of weights for a Jagged history with query_to_user, where it is known; saves a GPU wait.
        stats: rows in the batch statistics of Dice in training: "valid" pairs alone, or "padded": all T positions of a
            Padded history, as BatchNorm in a padded implementation sees them.

    Any argument may be an inference tensor, also where others need gradients: autograd cannot notice a change of it, so
    it must stay as it is until the backward.

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
        query,
        history,
        weights,
        biases,
        features=features,
        activation=activation,
        activation_params=activation_params,
        normalize=normalize,
        scale=scale,
        query_to_user=query_to_user,
        return_weights=return_weights,
        total_pairs=total_pairs,
        stats=stats,
    )
    return (result.pooled, result.weights) if return_weights else result.pooled
