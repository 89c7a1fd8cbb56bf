"""The local activation unit computed by its modules one by one, where the fused call cannot stand for them.

The fused call reads weights and settings of the modules and calls none. A module that was replaced or carries hooks
would be passed over by it without a word; such a unit takes this path, which costs what the fused call saves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from din_kernels import backends
from din_kernels.backends.reference import local_activation as reference
from din_kernels.gather import Gather
from din_kernels.hooks import as_made, changed, hooks_of_all_modules
from din_kernels.nn.dice import Dice
from din_kernels.ops.autocast import without_autocast
from din_kernels.ops.local_activation import Attended
from din_kernels.ops.local_activation.checks import check_rows
from din_kernels.ops.local_activation.histories import (
    check_statistics,
    in_autocast_dtype,
    pair_layout,
    rows_of,
    weights_in_layout,
)


class Kind(NamedTuple):
    """The module of an activation, which the fused call stands for."""

    module: type[nn.Module]
    make: Callable[..., nn.Module]  # (width, device=, dtype=)
    params: dict[str, str] = {}  # what the fused call takes of the module: name in options.py, attribute


def _without_parameters(module: type[nn.Module]) -> Kind:
    return Kind(module, lambda width, **factory: module())


KINDS = {
    "sigmoid": _without_parameters(nn.Sigmoid),
    "relu": _without_parameters(nn.ReLU),
    "prelu": Kind(nn.PReLU, lambda width, **factory: nn.PReLU(**factory), {"slope": "weight"}),
    "tanh": _without_parameters(nn.Tanh),
    "silu": _without_parameters(nn.SiLU),
    "identity": _without_parameters(nn.Identity),
    "dice": Kind(
        Dice,
        Dice,
        {"alpha": "alpha", "mean": "running_mean", "var": "running_var", "eps": "eps", "training": "training"},
    ),
}


def beyond_kernels(linears: nn.ModuleList, activations: nn.ModuleList, activation: str) -> str | None:
    """Why the fused call cannot stand for these modules, or None.

    Parametrized weights are read through their attribute, so the fused call sees them. Pruning and the older
    `weight_norm` compute the weight in a hook before the module's forward, which the fused call would not run.
    """
    if hooks_of_all_modules():
        return "hooks of all modules are registered (torch.nn.modules.module.register_module_...)"
    kind = KINDS[activation].module
    for at, layer in enumerate(linears):
        if not as_made(layer, nn.Linear):
            return changed(f"linears[{at}]", layer, nn.Linear)
    for at, layer in enumerate(activations):
        if not as_made(layer, kind):
            return changed(f"activations[{at}]", layer, kind)
        if activation == "dice" and (layer.weight is not None or layer.bias is not None):
            return f"activations[{at}] is an affine Dice"
    return None


def attend_by_modules(unit, reason: str, query, history, query_to_user, return_weights, total_pairs) -> Attended:
    """As `attend` for the unit's options, with the features `[P, ...]` of all pairs and a call of every module.

    Raises:
        din_kernels.BackendError: a backend other than the reference is forced; `reason` says why it cannot serve.
    """
    query, history = in_autocast_dtype(query, history)
    check_rows(query, history, query_to_user)
    check_statistics(unit.stats, history)
    options = {"beyond_kernels": f"{reason}, which kernels do not see"}
    backends.select(backends.Request("local_activation", query.device.type, query.dtype, options))
    if query.device.type == "meta":
        raise ValueError(f"query must have values where modules are called one by one ({reason}), got the meta device")
    dice_training = any(isinstance(each, Dice) and each.training for each in unit.activations.modules())
    layout = rows_of(history, padded_statistics=unit.stats == "padded" and dice_training)
    if query_to_user is not None:
        query_to_user = query_to_user.to(torch.int64)
    # Modules compute in the dtype of their parameters; autocast would lower what kernels compute in fp32.
    floating = (each.dtype for each in unit.parameters() if each.is_floating_point())
    compute = torch.promote_types(query.dtype, next(floating, query.dtype))
    q = (query.rows() if isinstance(query, Gather) else query).to(compute)
    rows = (history.rows() if isinstance(history, Gather) else layout.source.tables[0]).to(compute)
    queries = q.shape[0]
    pairs = pair_layout(layout, query_to_user, queries, total_pairs) if return_weights else None
    candidate, position, row = reference.pair_index(
        layout.begin, layout.length, layout.row_index, query_to_user, queries
    )
    with without_autocast(q.device):
        k = rows[row]
        hidden = reference.features_of(q[candidate], k, unit.features)
        for linear, activation in zip(unit.linears[:-1], unit.activations, strict=True):
            hidden = activation(linear(hidden))
        scores = unit.scale * unit.linears[-1](hidden).squeeze(-1)
        if layout.row_mask is not None:
            valid = layout.row_mask[row]
            candidate, position, k, scores = candidate[valid], position[valid], k[valid], scores[valid]
        w = reference.normalized(scores, candidate, queries, unit.normalize)
        pooled, weights = reference.pool(w, k, candidate, position, queries, *(pairs or (None, 0)))
    pooled, weights = pooled.to(query.dtype), weights.to(query.dtype)
    if pairs is not None:
        weights = weights_in_layout(weights, history, layout, pairs.begin, query_to_user, queries)
    return Attended(pooled, weights if pairs is not None else None, [])
