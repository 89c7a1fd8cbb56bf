"""A model's tables, and how one forward reads them.

Separate   every field is a lookup of its own; histories are given to the unit by id and never written out. The
           sparse gradients of a table's uses are joined here: torch adds two of them slowly, and in fp16 and bf16
           on a CPU not at all.
Joined     all ids of a table in one call of its module, whose rows are cut apart: for tables that are more than a
           plain nn.Embedding (replaced, hooked, with padding_idx or max_norm, quantized).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from din_kernels.gather import Gather
from din_kernels.hooks import changed, hooks_of_all_modules
from din_kernels.jagged import Jagged
from din_kernels.models.config import DINConfig

Fields = dict[str, str]  # names of fields, and the table that each looks rows up in


def field_of(group: str, name: str, ids: dict[str, Any]):
    """Field `name` of a group of the batch, or a ValueError that names both."""
    if name not in ids:
        raise ValueError(f"{group} must hold field {name!r}, got {', '.join(map(repr, ids)) or 'none'}")
    return ids[name]


class Embeddings(nn.ModuleDict):
    """The config's tables, each `[rows, dim]`, initialized with a small normal distribution."""

    def __init__(self, config: DINConfig):
        made = {
            name: nn.Embedding(table.rows, table.dim, sparse=config.sparse) for name, table in config.tables.items()
        }
        super().__init__(made)
        self.std = config.embedding_std
        self.groups = groups_of(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the tables anew."""
        for name in self:
            nn.init.normal_(self.table(name).weight, std=self.std)

    def table(self, name: str) -> nn.Embedding:
        """The table `name`."""
        return cast(nn.Embedding, self[name])

    def lookups(self, inputs: dict[str, Any]) -> Lookups:
        """How a forward on `inputs` (see `inputs_of`) reads the tables."""
        plain = not hooks_of_all_modules() and all(map(_plain, self.values()))
        return Separate(self) if plain else Joined(self, inputs)

    def vectors(self, group: str, fields: Fields, ids: dict[str, Any]) -> torch.Tensor:
        """Concatenated vectors `[n, width]` of a group's fields; a row's ids are averaged, none gives 0."""
        return self._only(group, fields, ids).vectors(group, fields, ids)

    def sums(self, group: str, fields: Fields, ids: dict[str, Any]) -> torch.Tensor:
        """`[U, width]`: sums over each user's rows `ids["offsets"]`."""
        return self._only(group, fields, ids).sums(group, fields, ids)

    def _only(self, group: str, fields: Fields, ids: dict[str, Any]) -> Lookups:
        return Separate(self) if all(map(_plain, self.values())) else Joined(self, {group: ids}, {group: fields})


def _plain(table: nn.Module) -> bool:
    """Whether rows of its weight are all that the table computes."""
    return (
        changed("", table, nn.Embedding) is None
        and table.padding_idx is None
        and table.max_norm is None
        and not table.scale_grad_by_freq
    )


def groups_of(config: DINConfig) -> dict[str, Fields]:
    """The fields of every group of a batch, under the names that messages give them."""
    groups = {"candidate": config.candidate, "profile": config.profile, "context": config.context}
    return groups | {f"histories[{name!r}]": dict(fields) for name, fields in config.histories.items()}


def _ids_of_groups(inputs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The ids of every group of a batch, under the names of `groups_of`."""
    groups = {name: inputs.get(name, {}) for name in ("candidate", "profile", "context")}
    return groups | {f"histories[{name!r}]": ids for name, ids in inputs["histories"].items()}


class Lookups:
    """Vectors of fields. A subclass says how rows are read and how several are added up."""

    def __init__(self, tables: Embeddings):
        self.tables = tables

    def rows(self, group: str, name: str, table: str, ids: torch.Tensor) -> torch.Tensor:
        """`[n, dim]` of the ids `[n]` of field `name`."""
        raise NotImplementedError

    def bags(self, group, name, table, ids, offsets, mode, shares=None) -> torch.Tensor:
        """`[b, dim]`: sums or means over the ids `[n]` that `offsets [b + 1]` cut, of rows times `shares [n]`."""
        raise NotImplementedError

    def history(self, group: str, fields: Fields, ids: dict[str, Any]) -> Gather | Jagged:
        """A behaviour sequence as the unit takes it."""
        return Jagged(self.vectors(group, fields, ids), field_of(group, "offsets", ids))

    def vectors(self, group: str, fields: Fields, ids: dict[str, Any]) -> torch.Tensor:
        """Concatenated vectors `[n, width]` of a group's fields; a row's ids are averaged, none gives 0."""
        columns = []
        for name, table in fields.items():
            values = field_of(group, name, ids)
            if isinstance(values, Jagged):
                columns.append(self.bags(group, name, table, values.values, values.offsets, "mean"))
            else:
                columns.append(self.rows(group, name, table, values))
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)

    def sums(self, group: str, fields: Fields, ids: dict[str, Any]) -> torch.Tensor:
        """`[U, width]`: sums over each user's rows `ids["offsets"]`, gathered and added in one pass."""
        offsets, columns = field_of(group, "offsets", ids), []
        for name, table in fields.items():
            values = field_of(group, name, ids)
            if isinstance(values, Jagged):
                # A mean over the ids of each row, summed over rows: weight 1 / (ids in the row) on every id.
                lengths = values.lengths()
                shares = lengths.clamp(min=1).double().reciprocal()
                shares = torch.repeat_interleave(shares, lengths, output_size=values.num_rows)
                columns.append(self.bags(group, name, table, values.values, values.offsets[offsets], "sum", shares))
            else:
                columns.append(self.bags(group, name, table, values, offsets, "sum"))
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)


class Separate(Lookups):
    """A lookup per field, in the weights of plain tables."""

    def __init__(self, tables: Embeddings):
        super().__init__(tables)
        self._uses: dict[str, Iterator[torch.Tensor]] = {}

    def weight(self, table: str) -> torch.Tensor:
        """The table's weight for one more use; gradients of all uses arrive at it as one."""
        module = self.tables.table(table)
        joins = module.sparse and module.weight.requires_grad and torch.is_grad_enabled()
        if not joins or torch.compiler.is_compiling():  # traced: an exported forward, which has no backward
            return module.weight
        if table not in self._uses:
            uses = sum(name == table for fields in self.tables.groups.values() for name in fields.values())
            self._uses[table] = iter(_Uses.apply(module.weight, uses))
        return next(self._uses[table], module.weight)

    def rows(self, group, name, table, ids):
        return functional.embedding(ids, self.weight(table), sparse=self.tables.table(table).sparse)

    def bags(self, group, name, table, ids, offsets, mode, shares=None):
        weight = self.weight(table)
        options = {"mode": mode, "sparse": self.tables.table(table).sparse, "include_last_offset": True}
        shares = None if shares is None else shares.to(weight.dtype)
        return functional.embedding_bag(ids, weight, offsets, per_sample_weights=shares, **options)

    def history(self, group, fields, ids):
        """Rows by id, which the unit fetches itself; copied out where a behaviour has several ids of one field, and
        where tables differ in dtype."""
        columns = [field_of(group, name, ids) for name in fields]
        modules = [self.tables.table(table) for table in fields.values()]
        copied = any(isinstance(each, Jagged) for each in columns) or len({each.weight.dtype for each in modules}) > 1
        if copied:
            return super().history(group, fields, ids)
        weights = [self.weight(table) for table in fields.values()]
        return Gather(columns, weights, field_of(group, "offsets", ids), sparse=modules[0].sparse)


class _Uses(torch.autograd.Function):
    """A weight as `uses` tensors, whose sparse gradients become one by appending their entries."""

    @staticmethod
    def forward(weight, uses):
        return tuple(weight.view_as(weight) for _ in range(uses))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        given = [grad for grad in grads if grad is not None]
        if len(given) < 2 or not all(grad.is_sparse for grad in given):
            return sum(given[1:], given[0]) if given else None, None
        ids = torch.cat([grad._indices() for grad in given], 1)
        rows = torch.cat([grad._values() for grad in given])
        return torch.sparse_coo_tensor(ids, rows, given[0].shape, check_invariants=False), None


class Joined(Lookups):
    """One call of each table's module, on the ids of all fields that share it."""

    def __init__(self, tables: Embeddings, inputs: dict[str, Any], groups: dict[str, Fields] | None = None):
        super().__init__(tables)
        given = inputs if groups is not None else _ids_of_groups(inputs)
        asked: dict[str, list[tuple[tuple[str, str], torch.Tensor]]] = {}
        for group, fields in (groups or tables.groups).items():
            for name, table in fields.items():
                ids = field_of(group, name, given.get(group, {}))
                ids = ids.values if isinstance(ids, Jagged) else ids
                asked.setdefault(table, []).append(((group, name), ids))
        self._rows: dict[tuple[str, str], torch.Tensor] = {}
        for table, fields_of_table in asked.items():
            keys, ids = zip(*fields_of_table, strict=True)
            rows = tables[table](torch.cat(ids))
            self._rows.update(zip(keys, rows.split([each.shape[0] for each in ids]), strict=True))

    def rows(self, group, name, table, ids):
        return self._rows[group, name]

    def bags(self, group, name, table, ids, offsets, mode, shares=None):
        rows, lengths = self._rows[group, name], offsets.diff()
        bag = torch.arange(lengths.shape[0], device=ids.device)
        bag = torch.repeat_interleave(bag, lengths, output_size=ids.shape[0])
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if shares is not None:
            wide = wide * shares.to(wide.dtype).unsqueeze(1)
        total = wide.new_zeros(lengths.shape[0], rows.shape[1]).index_add(0, bag, wide)
        if mode == "mean":
            total = total / lengths.clamp(min=1).unsqueeze(1)
        return total.to(rows.dtype)
