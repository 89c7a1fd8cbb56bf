"""What `local_activation` refuses: arguments of the public function, and values that only its implementation sees.

No message is worded before it is needed: a size in it would become a constant of a traced graph.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import torch

from din_kernels import checks, options
from din_kernels.backends.calls import LocalActivationCall, arithmetic_dtype
from din_kernels.gather import Gather
from din_kernels.jagged import Jagged, Padded

_CLASSES = (torch.Tensor, torch.nn.Parameter)


class Layers(NamedTuple):
    """The MLP, checked."""

    weights: list[torch.Tensor]  # [out, in] each, hidden layers and the output layer
    biases: list[torch.Tensor]  # [out] each
    params: list[dict]  # per hidden layer; of Dice with eps and training
    hidden: list[int]  # their widths
    batch_statistics: bool | str  # whether the hidden layers take them: all, none, or "some"


def check_options(features: str, activation: str, normalize: str, stats: str) -> None:
    """Raises unless each is one of `options`' names."""
    checks.one_of("features", features, options.FEATURES)
    checks.one_of("activation", activation, options.ACTIVATIONS)
    checks.one_of("normalize", normalize, options.NORMALIZATIONS)
    checks.one_of("stats", stats, options.STATISTICS)


def check_rows(query, history, query_to_user) -> None:
    """Raises unless query and history fit each other."""
    dim = _check_query(query)
    if not isinstance(history, (Jagged, Padded, Gather)):
        raise TypeError(f"history must be a din_kernels.Jagged, Padded or Gather, got {type(history).__name__}")
    if isinstance(history, Gather):
        if history.offsets is None:
            raise ValueError("history must be a Gather with offsets, got one without")
        values = history
        if history.width != dim:
            raise ValueError(f"history must have tables of width {dim} together (D of query), got {history.width}")
    else:
        values, ndim = history.values, 2 if isinstance(history, Jagged) else 3
        if values.dim() != ndim or values.shape[-1] != dim:
            expected = f"[N, {dim}]" if ndim == 2 else f"[B, T, {dim}]"
            raise ValueError(f"history must have shape {expected} (D of query), got {list(values.shape)}")
    checks.same_dtype("history", values, "query", query)
    checks.same_device("history", values, "query", query)
    queries, users = query.num_rows if isinstance(query, Gather) else query.shape[0], history.batch_size
    if query_to_user is None:
        if queries != users:
            raise ValueError(
                f"query must have one row per history ({users}) unless query_to_user is given, got {queries}"
            )
        return
    checks.is_tensor("query_to_user", query_to_user, 1, "[Q]")
    checks.is_index("query_to_user", query_to_user)
    checks.has_shape("query_to_user", query_to_user, (queries,), " (one per query)")
    checks.same_device("query_to_user", query_to_user, "query", query)
    checks.ids_within("query_to_user", query_to_user, users, "histories")


def _check_query(query) -> int:
    """D."""
    if isinstance(query, Gather):
        if query.offsets is not None:
            raise ValueError("query must be a Gather without offsets, got one with offsets")
        return query.width
    checks.is_tensor("query", query, 2, "[Q, D]")
    checks.is_floating("query", query)
    return query.shape[1]


def check_layers(query, weights, biases, features: str, activation: str, activation_params) -> Layers:
    """The MLP, or an error that names what does not fit the query, the features or the activation."""
    weights, biases = checks.listed("weights", weights), checks.listed("biases", biases)
    if activation_params is not None:
        activation_params = checks.listed("activation_params", activation_params, "dicts")
    made_of = _shapes_and_kinds(query, weights, biases)
    if made_of is None or (features, made_of) not in _fitting:
        _check_linears(query, weights, biases, features)
        if made_of is not None:
            if len(_fitting) == _MOST_FITTING:
                _fitting.clear()
            _fitting.add((features, made_of))
    hidden, kind = [weight.shape[0] for weight in weights[:-1]], options.ACTIVATIONS[activation]
    params = [{} for _ in hidden] if activation_params is None else activation_params
    if len(params) != len(hidden):
        raise ValueError(f"activation_params must hold one dict per hidden layer ({len(hidden)}), got {len(params)}")
    for layer, given in enumerate(params):
        if not isinstance(given, dict):
            raise TypeError(f"activation_params[{layer}] must be a dict, got {type(given).__name__}")
        if kind.statistics:
            given = params[layer] = {"eps": 1e-8, "training": False} | given
        if kind.params:
            _check_params(f"activation_params[{layer}]", given, hidden[layer], activation, query)
    training = {bool(layer["training"]) for layer in params} if kind.statistics else set()
    return Layers(weights, biases, params, hidden, "some" if len(training) == 2 else training == {True})


# What `_check_linears` has found to fit, with the features: a unit is called with the same layers over and over.
_fitting: set[tuple] = set()
_MOST_FITTING = 1000


def _shapes_and_kinds(query, weights, biases) -> tuple | None:
    """All that `_check_linears` reads, or None where that is not plain tensors alone, and in a trace."""
    if torch.compiler.is_compiling():
        return None
    found: list = [
        len(weights),
        query.width if isinstance(query, Gather) else query.shape[1],
        query.dtype,
        query.device,
    ]
    for tensor in (*weights, *biases):
        if type(tensor) not in _CLASSES or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
            return None
        found += (tensor.dtype, tensor.shape, tensor.device)
    return tuple(found)


def _check_linears(query, weights, biases, features: str) -> None:
    if len(weights) < 1 or len(weights) != len(biases):
        raise ValueError(
            f"weights and biases must be lists of the same length >= 1, got {len(weights)} and {len(biases)}"
        )
    if len(weights) > options.MAX_HIDDEN + 1:
        raise ValueError(
            f"weights must hold 0 to {options.MAX_HIDDEN} hidden layers and the output layer, got {len(weights)} "
            "entries"
        )
    dim = query.width if isinstance(query, Gather) else query.shape[1]
    width = options.feature_width(dim, features)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        name = f"weights[{layer}]"
        checks.is_tensor(name, weight, 2, "[out, in]")
        checks.is_tensor(f"biases[{layer}]", bias, 1, "[out]")
        out = 1 if layer == len(weights) - 1 else weight.shape[0]
        if weight.shape[0] != out or weight.shape[1] != width:
            whose = f": features={features!r} of D={dim}" if layer == 0 else ""
            raise ValueError(f"{name} must have shape {[out, width]} (in = {width}{whose}), got {list(weight.shape)}")
        checks.has_shape(f"biases[{layer}]", bias, (out,))
        for label, tensor in ((name, weight), (f"biases[{layer}]", bias)):
            _check_weight_dtype(label, tensor, query)
            checks.same_device(label, tensor, "query", query)
        width = out


def _check_weight_dtype(label: str, tensor: torch.Tensor, query: torch.Tensor | Gather) -> None:
    allowed = {query.dtype, arithmetic_dtype(query.dtype)}
    if tensor.dtype not in allowed:
        expected = " or ".join(str(dtype) for dtype in (query.dtype, *sorted(allowed - {query.dtype}, key=str)))
        raise TypeError(f"{label} must have dtype {expected} (query: {query.dtype}), got {tensor.dtype}")


def _check_params(label: str, given: dict, width: int, activation: str, query) -> None:
    kind = options.ACTIVATIONS[activation]
    for key in kind.params:
        value = given.get(key)
        if value is None:
            if given.get("training", False) and key in kind.statistics:
                continue
            raise ValueError(f"{label} must have {key!r} for activation={activation!r}, got {sorted(given)}")
        name = f"{label}[{key!r}]"
        checks.is_tensor(name, value, 1, "[H] or [1]")
        checks.is_real(name, value)
        if value.shape[0] != 1 and value.shape[0] != width:
            raise ValueError(f"{name} must have shape [{width}] or [1], got {list(value.shape)}")
        checks.same_device(name, value, "query", query)

    if kind.statistics:
        checks.number(f"{label}['eps']", given["eps"], at_least=0)
        checks.flag(f"{label}['training']", given["training"])


def check_values(call: LocalActivationCall) -> None:
    """Raises where a kernel would follow values out of bounds; for the op's implementation, where a trace has ended."""
    begin, length, users = call.begin, call.length, call.begin.shape[0]
    if not checks.at_hand(begin):
        return
    capacity = call.rows if call.row_index is None else call.row_index.shape[0]
    if not (users <= checks.FEW and _in_order(begin.tolist(), length.tolist(), capacity)):
        _check_histories(begin, length, capacity)
    within = functools.partial(checks.ids_within, readable=checks.at_hand)
    if call.row_index is not None:
        within("row_index", call.row_index, call.rows, "history rows")
    if call.query_to_user is not None:
        within("query_to_user", call.query_to_user, users, "histories")
    for name in ("query", "history"):
        tables, ids = getattr(call, f"{name}_tables"), getattr(call, f"{name}_ids")
        for k, each in enumerate(ids):
            within(f"{name}_ids[{k}]", each, tables[k].shape[0])
    if call.pair_begin is not None and call.pair_begin.numel():
        lengths = length if call.query_to_user is None else length[call.query_to_user]
        first, last = int(call.pair_begin.min()), int((call.pair_begin + lengths).max())
        if first < 0 or last > call.total_pairs:
            raise ValueError(
                f"pair_begin must keep all weights within total_pairs ({call.total_pairs}), got {first}..{last}"
            )


def _in_order(begin: list[int], length: list[int], capacity: int) -> bool:
    """Whether the rows of every history lie behind those of the one before it, the last below `capacity`."""
    if not begin:
        return True
    ends = map(operator.add, begin, length)
    return begin[0] >= 0 and min(length) >= 0 and all(map(operator.le, ends, [*begin[1:], capacity]))


def _check_histories(begin: torch.Tensor, length: torch.Tensor, capacity: int) -> None:
    """Raises unless the rows of every history lie behind those of the one before it, all below `capacity`."""
    users, end = begin.shape[0], begin + length
    if users and (int(length.min()) < 0 or int(begin.min()) < 0 or int(end.max()) > capacity):
        raise ValueError(
            f"lengths must stay within the {capacity} history rows, got rows up to {int(end.max())} and lengths from "
            f"{int(length.min())}"
        )
    if bool((end[:-1] > begin[1:]).any()):
        at = int((end[:-1] > begin[1:]).nonzero()[0])
        raise ValueError(
            f"lengths must keep every history within its own rows, got {int(length[at])} for history {at}, which "
            "reaches into the next"
        )
