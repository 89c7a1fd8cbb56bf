"""What DIN and the base model share: tables, how fields become vectors, the top MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from din_kernels.data.batches import Batch
from din_kernels.jagged import Jagged
from din_kernels.models.config import DINConfig
from din_kernels.nn.dice import Dice


def inputs_of(batch: Batch | dict[str, Any]) -> dict[str, Any]:
    """The dict of tensors that a model reads, from a `data.Batch`; such a dict is returned as it is.

    Its entries, where ids are int64 `[n]` tensors, or a `Jagged` of ids over n rows where a row has several:
        candidate: `{field: ids of Q rows}`.
        histories: `{name: {"offsets": [U + 1], field: ids of N rows}}`.
        profile: `{field: ids of U rows}`.
        context: `{field: ids of Q rows}`.
        query_to_user: `[Q]`, which user each candidate belongs to; without it candidate i belongs to user i.
    """
    if isinstance(batch, dict):
        return batch
    return {
        "candidate": {"item": batch.candidate_items, "category": batch.candidate_categories},
        "histories": {
            "behaviours": {
                "offsets": batch.offsets,
                "item": batch.history_items,
                "category": batch.history_categories,
            }
        },
        "profile": {"user": batch.users},
        "context": {},
        "query_to_user": batch.query_to_user,
    }


class Embeddings(nn.ModuleDict):
    """The config's tables, each `[rows, dim]`, initialized with a small normal distribution."""

    def __init__(self, config: DINConfig):
        super().__init__({
            name: nn.Embedding(table.rows, table.dim, sparse=config.sparse) for name, table in config.tables.items()
        })  # fmt: skip
        for table in self.values():
            nn.init.normal_(table.weight, std=config.embedding_std)

    def vectors(self, group: str, fields: dict[str, str], ids: dict[str, Any]) -> torch.Tensor:
        """Concatenated vectors `[n, width]` of a group's fields; a row's ids are averaged, none gives 0."""
        columns = []
        for name, table in fields.items():
            values = field_of(group, name, ids)
            if isinstance(values, Jagged):
                columns.append(self._bags(table, values.values, values.offsets, "mean"))
            else:
                columns.append(self[table](values))
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)

    def sums(self, group: str, fields: dict[str, str], ids: dict[str, Any]) -> torch.Tensor:
        """`[U, width]`: sums over each user's rows `ids["offsets"]`, gathered and added in one pass."""
        offsets, columns = field_of(group, "offsets", ids), []
        for name, table in fields.items():
            values = field_of(group, name, ids)
            if isinstance(values, Jagged):
                # A mean over the ids of each row, summed over rows: weight 1 / (ids in the row) on every id.
                lengths = values.lengths()
                shares = self[table].weight.new_ones(()) / lengths.clamp(min=1)
                shares = torch.repeat_interleave(shares, lengths, output_size=values.num_rows)
                columns.append(self._bags(table, values.values, values.offsets[offsets], "sum", shares))
            else:
                columns.append(self._bags(table, values, offsets, "sum"))
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)

    def _bags(self, table, ids, offsets, mode, shares=None):
        table = self[table]
        return functional.embedding_bag(
            ids, table.weight, offsets, mode=mode, sparse=table.sparse, per_sample_weights=shares,
            include_last_offset=True,
        )  # fmt: skip


def field_of(group: str, name: str, ids: dict[str, Any]):
    """Field `name` of a group of the batch, or a ValueError that names both."""
    if name not in ids:
        raise ValueError(f"{group} must hold field {name!r}, got {', '.join(map(repr, ids)) or 'none'}")
    return ids[name]


class Top(nn.Sequential):
    """The top MLP `[Q, width] -> [Q]`: Linear and Dice or PReLU per hidden layer, then one output."""

    def __init__(self, width: int, hidden: tuple[int, ...], activation: str):
        layers: list[nn.Module] = []
        for inputs, outputs in zip((width, *hidden), hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), Dice(outputs) if activation == "dice" else nn.PReLU(outputs)]
        super().__init__(*layers, nn.Linear(hidden[-1] if hidden else width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).squeeze(-1)


class Model(nn.Module):
    """Embeds the fields, pools every history for every candidate (`interests`), and scores both with the top MLP."""

    def __init__(self, config: DINConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.top = Top(config.top_width, config.top_hidden, config.activation)
        first_table = config.tables[next(iter(config.candidate.values()))]
        self.item_bias = nn.Embedding(first_table.rows, 1, sparse=config.sparse) if config.item_bias else None
        if self.item_bias is not None:
            nn.init.zeros_(self.item_bias.weight)

    def interests(self, inputs: dict[str, Any], candidate: torch.Tensor) -> list[torch.Tensor]:
        """`[Q, D]` per history."""
        raise NotImplementedError

    def forward(self, batch: Batch | dict[str, Any]) -> torch.Tensor:
        """Logits `[Q]` of a `data.Batch`, or of the dict described at `inputs_of`.

        Raises:
            ValueError: a field of the config that the batch lacks.
        """
        inputs = inputs_of(batch)
        candidate = self.embeddings.vectors("candidate", self.config.candidate, inputs["candidate"])
        parts = []
        if self.config.profile:
            profile = self.embeddings.vectors("profile", self.config.profile, inputs["profile"])
            parts.append(per_candidate(profile, inputs))
        if self.config.context:
            parts.append(self.embeddings.vectors("context", self.config.context, inputs["context"]))
        interests = self.interests(inputs, candidate)
        crossed = [interest * candidate for interest in interests]
        logits = self.top(torch.cat([*interests, candidate, *crossed, *parts], -1))
        if self.item_bias is not None:
            logits = logits + self.item_bias(next(iter(inputs["candidate"].values()))).squeeze(-1)
        return logits


def per_candidate(rows: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Rows of users `[U, ...]` as rows of candidates `[Q, ...]`."""
    query_to_user = inputs.get("query_to_user")
    return rows if query_to_user is None else rows.index_select(0, query_to_user)
