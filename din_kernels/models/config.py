"""What a model is made of: tables, the fields that look rows up in them, and layer sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from din_kernels import checks
from din_kernels.ops.local_activation import ACTIVATIONS, FEATURES, NORMALIZATIONS

TOP_ACTIVATIONS = ("dice", "prelu")


@dataclass(frozen=True)
class Table:
    """An embedding table `[rows, dim]`."""

    rows: int
    dim: int

    def __post_init__(self):
        for name in ("rows", "dim"):
            checks.size(f"Table.{name}", getattr(self, name), at_least=0)


@dataclass(frozen=True)
class DINConfig:
    """Fields, tables and sizes of `models.DIN` and `models.EmbeddingMLP`.

    A field is a name in the batch and the table that its ids index; fields that name the same table share it. A field
    may hold one id, or several (`Jagged`), whose vectors are averaged.

    Args:
        tables: embedding tables by name.
        candidate: fields of the candidate, `{field: table}`; their vectors are concatenated in this order.
        histories: behaviour sequences, `{name: [[field, table], ...]}`; the k-th field stands for the candidate's k-th,
            so the concatenated vectors of both have one width D.
        profile: user fields, one row per user.
        context: fields of the impression, one row per candidate.
        attention_hidden: hidden widths of the local activation unit, 0 to 3.
        attention_activation, features, normalize, scale: as in `nn.LocalActivationUnit`.
        top_hidden: hidden widths of the top MLP.
        activation: "dice" or "prelu", of the top MLP.
        item_bias: add a learned bias per row of the first candidate field's table.
        embedding_std: standard deviation of the tables' normal initialization; torch's 1 is far larger than what a
            summed history bears.
        max_length: behaviours kept of a longer history, for the batches of this model; None keeps all.
        sparse: sparse gradients of the tables.

    Raises:
        ValueError: an unknown table or choice, a history whose width differs from the candidate's, sizes below 1.

    Example:
        >>> DINConfig.default(n_items=1000, n_categories=20).width
        128
    """

    tables: dict[str, Table]
    candidate: dict[str, str]
    histories: dict[str, list[tuple[str, str]]]
    profile: dict[str, str] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)
    attention_hidden: tuple[int, ...] = (80, 40)
    attention_activation: str = "sigmoid"
    features: str = "concat"
    normalize: str = "none"
    scale: float = 1.0
    top_hidden: tuple[int, ...] = (200, 80)
    activation: str = "dice"
    item_bias: bool = False
    embedding_std: float = 0.01
    max_length: int | None = 100
    sparse: bool = False

    def __post_init__(self):
        checks.one_of("attention_activation", self.attention_activation, ACTIVATIONS)
        checks.one_of("features", self.features, FEATURES)
        checks.one_of("normalize", self.normalize, NORMALIZATIONS)
        checks.one_of("activation", self.activation, TOP_ACTIVATIONS)
        checks.widths("attention_hidden", self.attention_hidden, at_most=3)
        checks.widths("top_hidden", self.top_hidden)
        checks.number("scale", self.scale)
        checks.number("embedding_std", self.embedding_std, at_least=0)
        if self.max_length is not None:
            checks.integer("max_length", self.max_length, at_least=0)
        for name in ("item_bias", "sparse"):
            checks.flag(name, getattr(self, name))
        for name in ("tables", "candidate", "histories", "profile", "context"):
            checks.is_mapping(name, getattr(self, name), "names")
        for name, fields in self.histories.items():
            _check_pairs(f"histories[{name!r}]", fields)
        if not self.candidate:
            raise ValueError("candidate must have at least one field, got none")
        if not self.histories:
            raise ValueError("histories must hold at least one behaviour sequence, got none")
        for name, table in self.tables.items():
            if not isinstance(table, Table):
                raise TypeError(f"tables[{name!r}] must be a Table, got {type(table).__name__}")
            if table.rows < 1 or table.dim < 1:
                raise ValueError(f"tables[{name!r}] must have rows and dim of at least 1, got {table}")
        groups = {"candidate": self.candidate, "profile": self.profile, "context": self.context}
        groups |= {f"histories[{name!r}]": dict(fields) for name, fields in self.histories.items()}
        for group, fields in groups.items():
            for name, table in fields.items():
                if not isinstance(table, str) or table not in self.tables:
                    known = ", ".join(map(repr, self.tables))
                    raise ValueError(f"{group} field {name!r} must name one of the tables {known}, got {table!r}")
        for name, fields in self.histories.items():
            width = self._width_of(dict(fields))
            if width != self.width:
                raise ValueError(
                    f"histories[{name!r}] must be as wide as the candidate ({self.width}), got width {width}"
                )

    @classmethod
    def default(cls, n_items: int, n_categories: int, dim: int = 64, **changes: Any) -> DINConfig:
        """Item and category tables of width `dim` each, shared by candidate and history; `changes` are fields."""
        shared = {"item": "item", "category": "category"}
        settings = {
            "tables": {"item": Table(n_items, dim), "category": Table(n_categories, dim)},
            "candidate": shared,
            "histories": {"behaviours": list(shared.items())},
        }
        return cls(**(settings | changes))

    @classmethod
    def from_dict(cls, settings: dict[str, Any], sizes: dict[str, int] | None = None) -> DINConfig:
        """From the dict of a JSON file; a table's rows may be a name in `sizes`, such as "items".

        Raises:
            ValueError: an unknown setting, or rows that name no entry of `sizes`.
        """
        checks.is_mapping("settings", settings, "fields of a DINConfig")
        settings, sizes = dict(settings), sizes or {}
        known = {each.name for each in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ValueError(f"settings must be among {', '.join(sorted(known))}, got {', '.join(unknown)}")
        tables = {}
        for name, table in settings["tables"].items():
            rows = table["rows"]
            if isinstance(rows, str):
                if rows not in sizes:
                    raise ValueError(
                        f"tables[{name!r}] rows must be a number or one of {', '.join(map(repr, sizes))}, got {rows!r}"
                    )
                rows = sizes[rows]
            tables[name] = Table(rows, table["dim"])
        settings["tables"] = tables
        settings["histories"] = {
            name: [tuple(pair) for pair in fields] for name, fields in settings["histories"].items()
        }
        for widths in ("attention_hidden", "top_hidden"):
            if widths in settings:
                settings[widths] = tuple(settings[widths])
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes, ready for JSON."""
        return dataclasses.asdict(self)

    def _width_of(self, fields: dict[str, str]) -> int:
        return sum(self.tables[table].dim for table in fields.values())

    @property
    def width(self) -> int:
        """D, the width of the candidate's and of a behaviour's concatenated vectors."""
        return self._width_of(self.candidate)

    @property
    def top_width(self) -> int:
        """Inputs of the top MLP: [interest, interest * candidate] per history, the candidate, profile and context."""
        return self.width * (1 + 2 * len(self.histories)) + self._width_of(self.profile) + self._width_of(self.context)


def _check_pairs(name: str, fields) -> None:
    """TypeError unless `fields` are pairs of a field and its table."""
    for pair in checks.listed(name, fields, "[field, table]"):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise TypeError(f"{name} must be a list of [field, table], got an entry {pair!r}")
