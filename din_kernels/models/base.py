"""What DIN and the base model share: tables, how fields become vectors, the top MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from din_kernels.data.batches import Batch
from din_kernels.inference import savable
from din_kernels.models.config import DINConfig
from din_kernels.models.embeddings import Embeddings, Lookups
from din_kernels.models.inputs import check_inputs
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
    if not isinstance(batch, Batch):
        raise TypeError(f"batch must be a din_kernels.data.Batch or a dict of fields, got {type(batch).__name__}")
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


class Top(nn.Sequential):
    """The top MLP `[Q, width] -> [Q]`: Linear and Dice or PReLU per hidden layer, then one output."""

    def __init__(self, width: int, hidden: tuple[int, ...], activation: str):
        layers: list[nn.Module] = []
        for inputs, outputs in zip((width, *hidden), hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), Dice(outputs) if activation == "dice" else nn.PReLU(outputs)]
        super().__init__(*layers, nn.Linear(hidden[-1] if hidden else width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[Q]`, computed in the dtype of the layers, whatever that of the tables is."""
        dtype = next((each.dtype for each in self.parameters() if each.is_floating_point()), x.dtype)
        return super().forward(x.to(dtype)).squeeze(-1)


class Model(nn.Module):
    """Embeds the fields, pools every history for every candidate (`interests`), and scores both with the top MLP."""

    def __init__(self, config: DINConfig):
        super().__init__()
        if not isinstance(config, DINConfig):
            raise TypeError(f"config must be a din_kernels.models.DINConfig, got {type(config).__name__}")
        self.config = config
        self.embeddings = Embeddings(config)
        self.top = Top(config.top_width, config.top_hidden, config.activation)
        first_table = config.tables[next(iter(config.candidate.values()))]
        self.item_bias = nn.Embedding(first_table.rows, 1, sparse=config.sparse) if config.item_bias else None
        if self.item_bias is not None:
            nn.init.zeros_(self.item_bias.weight)

    def reset_parameters(self) -> None:
        """Initializes the whole model anew, as after `to_empty`; a part that is reset alone starts as torch's do."""
        for each in (*self.embeddings.modules(), *self.top.modules()):
            if hasattr(each, "reset_parameters") and not isinstance(each, nn.Embedding):
                each.reset_parameters()
        if self.item_bias is not None:
            nn.init.zeros_(self.item_bias.weight)

    def interests(
        self, inputs: dict[str, Any], candidate: torch.Tensor, lookups: Lookups | None = None
    ) -> list[torch.Tensor]:
        """`[Q, D]` per history; `lookups` are those of the forward that asks, None outside of one."""
        raise NotImplementedError

    def forward(self, batch: Batch | dict[str, Any]) -> torch.Tensor:
        """Logits `[Q]` of a `data.Batch`, or of the dict described at `inputs_of`.

        Where torch.compile traces a training step with sparse tables, the graph begins behind the embedding and the
        units: no sparse gradient may be made inside it, since Inductor reuses the memory that such a gradient holds.

        Raises:
            TypeError, ValueError, IndexError: a field that the batch lacks or that the model cannot read, by its name.
        """
        inputs = inputs_of(batch)
        check_inputs(self.config, self.embeddings, inputs)
        inputs = savable(inputs)
        traced = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        sparse = any(getattr(each, "sparse", False) for each in (*self.embeddings.values(), self.item_bias))
        apart = traced and sparse and torch.is_grad_enabled()
        columns, bias = self._columns_apart(inputs) if apart else self._columns(inputs)
        logits = self.top(torch.cat(columns, -1))
        return logits if bias is None else logits + bias

    def _columns(self, inputs: dict[str, Any]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """What the top MLP reads, `[Q, width]` side by side, and the item bias `[Q]`."""
        lookups = self.embeddings.lookups(inputs)
        candidate = lookups.vectors("candidate", self.config.candidate, inputs["candidate"])
        parts = []
        if self.config.profile:
            profile = lookups.vectors("profile", self.config.profile, inputs["profile"])
            parts.append(per_candidate(profile, inputs))
        if self.config.context:
            parts.append(lookups.vectors("context", self.config.context, inputs["context"]))
        interests = self.interests(inputs, candidate, lookups)
        crossed = [interest * candidate for interest in interests]
        bias = None
        if self.item_bias is not None:
            bias = self.item_bias(next(iter(inputs["candidate"].values()))).squeeze(-1)
        return [*interests, candidate, *crossed, *parts], bias

    @torch.compiler.disable(reason="sparse gradients of din_kernels.models are made outside of the compiled graph")
    def _columns_apart(self, inputs: dict[str, Any]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        return self._columns(inputs)


def per_candidate(rows: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Rows of users `[U, ...]` as rows of candidates `[Q, ...]`."""
    query_to_user = inputs.get("query_to_user")
    return rows if query_to_user is None else rows.index_select(0, query_to_user)
