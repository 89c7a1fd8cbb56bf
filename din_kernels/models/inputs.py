"""What a model refuses of the inputs described at `inputs_of`, by the name of the group and the field."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from din_kernels import checks
from din_kernels.jagged import Jagged, check_offsets
from din_kernels.models.config import DINConfig
from din_kernels.models.embeddings import Embeddings, Fields, field_of


def check_inputs(config: DINConfig, tables: Embeddings, inputs: dict[str, Any]) -> None:
    """TypeError, ValueError or IndexError that names a field which the model cannot read.

    While tracing, types and dtypes alone are checked: a comparison of sizes would become a guard of the graph.
    """
    candidates = _group("candidate", config.candidate, _held("batch", inputs, "candidate"), tables)
    users = None
    for name, fields in config.histories.items():
        group, given = f"histories[{name!r}]", _held("histories", _held("batch", inputs, "histories"), name)
        rows = _group(group, dict(fields), given, tables)
        offsets = field_of(group, "offsets", given)
        checks.is_tensor(f"{group}['offsets']", offsets, 1, "[U + 1]")
        checks.is_index(f"{group}['offsets']", offsets)
        if torch.compiler.is_compiling():
            continue
        first = given[next(iter(dict(fields)))]
        first = first.offsets if isinstance(first, Jagged) else first
        check_offsets(offsets, rows, group, first, f"{group}['offsets']")
        _rows(f"{group}['offsets']", offsets.shape[0] - 1, users, "user")
        users = offsets.shape[0] - 1
    if config.profile:
        _rows("profile", _group("profile", config.profile, _held("batch", inputs, "profile"), tables), users, "user")
    if config.context:
        context = _group("context", config.context, _held("batch", inputs, "context"), tables)
        _rows("context", context, candidates, "candidate")
    query_to_user = inputs.get("query_to_user")
    if query_to_user is None:
        _rows("candidate", candidates, users, "user, without query_to_user")
        return
    checks.is_tensor("query_to_user", query_to_user, 1, "[Q]")
    checks.is_index("query_to_user", query_to_user)
    _rows("query_to_user", query_to_user.shape[0], candidates, "candidate")
    if users is not None:
        checks.ids_within("query_to_user", query_to_user, users, "users of the batch")


def _held(owner: str, given, name: str):
    checks.is_mapping(owner, given, "fields")
    if name not in given:
        raise ValueError(f"{owner} must hold {name!r}, got {', '.join(map(repr, given)) or 'none'}")
    return given[name]


def _rows(name: str, got: int, expected: int | None, per: str) -> None:
    if not torch.compiler.is_compiling() and expected is not None and got != expected:
        raise ValueError(f"{name} must have {expected} rows, one per {per}, got {got}")


def _group(group: str, fields: Fields, given, tables: Embeddings) -> int:
    """How many rows the fields of a group have."""
    checks.is_mapping(group, given, "fields")
    rows = None
    for field, table in fields.items():
        ids, name, module = field_of(group, field, given), f"{group}[{field!r}]", tables[table]
        got = ids
        if isinstance(ids, Jagged):
            ids = ids.values
        checks.is_tensor(name, ids, 1, "[n]")
        if isinstance(module, nn.Embedding):  # a module of another kind says itself what ids it takes
            checks.is_index(name, ids)
            checks.same_device(name, ids, f"tables[{table!r}]", module.weight)
            checks.ids_within(name, ids, module.weight.shape[0], f"rows of tables[{table!r}]")
        count = got.batch_size if isinstance(got, Jagged) else ids.shape[0]
        _rows(name, count, rows, f"row of {group}")
        rows = count
    return rows or 0
