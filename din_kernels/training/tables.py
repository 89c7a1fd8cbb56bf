"""The tables of a config against the data: their sizes, the fields that read them, and how often an id appears."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from din_kernels.data import Interactions, Samples, category_counts, item_counts
from din_kernels.models.config import DINConfig

SIZES = {"item": "items", "category": "categories", "user": "users"}  # the size that bounds a field's ids
GROUPS = {"candidate": ("item", "category"), "profile": ("user",), "context": ()}  # what `data.Batch` gives to each
HISTORIES = {"behaviours": ("item", "category")}


class _Use(NamedTuple):
    """Field `field` of `group` (one of `known`, those that the data has there) reads `table`."""

    group: str
    field: str
    table: str
    known: tuple[str, ...]


def sizes_of(interactions: Interactions) -> dict[str, int]:
    """What table rows in a config file may be called: "items", "categories", "users"."""
    return {
        "items": interactions.n_items,
        "categories": interactions.n_categories,
        "users": interactions.n_users,
    }


def require_fit(config: DINConfig, interactions: Interactions) -> None:
    """Holds a config to the data that it will be trained on.

    Raises:
        ValueError: a behaviour sequence or a field that the data does not have, or a table with fewer rows than ids.
    """
    unknown = [name for name in config.histories if name not in HISTORIES]
    if unknown:
        raise ValueError(f"histories must be among {', '.join(map(repr, HISTORIES))}, got {unknown[0]!r}")
    sizes = sizes_of(interactions)
    for use in _uses(config):
        if use.field not in use.known:
            known = ", ".join(map(repr, use.known)) or "none"
            raise ValueError(f"{use.group} must have fields among {known}, got {use.field!r}")
        least, rows = sizes[SIZES[use.field]], config.tables[use.table].rows
        if rows < least:
            raise ValueError(
                f"tables[{use.table!r}] must have a row for each of the {least} {SIZES[use.field]}, got {rows} rows"
            )


def table_counts(config: DINConfig, samples: Samples, interactions: Interactions) -> dict[str, torch.Tensor]:
    """`[V]` per table of the config: n_j, the (history, candidate) pairs of `samples` in which id j appears.

    Raises:
        ValueError: a field other than item, category and user, or a table that several of them share.
    """
    count = {
        "item": lambda: item_counts(samples, interactions, config.max_length),
        "category": lambda: category_counts(samples, interactions, config.max_length),
        "user": lambda: np.bincount(samples.user, minlength=interactions.n_users) * samples.candidates.shape[1],
    }
    field_of: dict[str, str] = {}
    for use in _uses(config):
        if use.field not in count:
            raise ValueError(f"mba counts the fields {', '.join(count)}, got field {use.field!r}")
        if field_of.setdefault(use.table, use.field) != use.field:
            raise ValueError(
                f"mba counts one field per table, got {field_of[use.table]!r} and {use.field!r} in {use.table!r}"
            )
    return {
        table: _of_rows(torch.from_numpy(count[field]()), config.tables[table].rows)
        for table, field in field_of.items()
    }


def _uses(config: DINConfig) -> Iterator[_Use]:
    for group, known in GROUPS.items():
        for field, table in getattr(config, group).items():
            yield _Use(group, field, table, known)
    for name, pairs in config.histories.items():
        for field, table in pairs:
            yield _Use(f"histories[{name!r}]", field, table, HISTORIES.get(name, ()))


def _of_rows(counts: torch.Tensor, rows: int) -> torch.Tensor:
    """`[rows]`: a table may have more rows than the data has ids; those that never appear count 0."""
    return torch.cat([counts, counts.new_zeros(max(0, rows - len(counts)))])
