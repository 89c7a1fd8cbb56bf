"""Deep Interest Network (paper section 4.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from din_kernels.data.batches import Batch
from din_kernels.gather import Gather
from din_kernels.jagged import Jagged
from din_kernels.models.base import Model, field_of, inputs_of
from din_kernels.models.config import DINConfig
from din_kernels.nn.local_activation import LocalActivationUnit


class DIN(Model):
    """Deep Interest Network: a local activation unit pools each behaviour sequence per candidate.

    Args:
        config: fields, tables and sizes.

    A history is packed, never padded, and shared by all its candidates; the unit reads it from the tables by id, so
    that its `[N, D]` vectors are never written out.

    Example:
        >>> model = DIN(DINConfig.default(n_items=100, n_categories=5, dim=8))
        >>> ids = {"item": torch.tensor([3, 4, 9]), "category": torch.tensor([0, 1, 1])}
        >>> history = ids | {"offsets": torch.tensor([0, 3])}
        >>> candidate = {"item": torch.tensor([7, 8]), "category": torch.tensor([1, 2])}
        >>> inputs = {"candidate": candidate, "histories": {"behaviours": history}}
        >>> model(inputs | {"query_to_user": torch.tensor([0, 0])}).shape
        torch.Size([2])
    """

    def __init__(self, config: DINConfig):
        super().__init__(config)
        self.units = nn.ModuleDict({
            name: LocalActivationUnit(
                config.width, config.attention_hidden, config.attention_activation, config.features, config.normalize,
                config.scale,
            )
            for name in config.histories
        })  # fmt: skip
        if config.normalize == "none":
            # Weights start near 1, as in sum pooling. Near 0 they may grow to either sign, and
            # then no longer say what is relevant: on planted interests they were negative with 2 of 3 seeds.
            for unit in self.units.values():
                nn.init.ones_(unit.linears[-1].bias)

    def _history(self, name: str, inputs: dict[str, Any]) -> Gather | Jagged:
        """Rows by id, which the unit fetches itself; copied out where a behaviour has several ids of one field."""
        group, ids = f"histories[{name!r}]", inputs["histories"][name]
        fields = dict(self.config.histories[name])
        offsets = field_of(group, "offsets", ids)
        columns = [field_of(group, each, ids) for each in fields]
        if any(isinstance(each, Jagged) for each in columns):
            return Jagged(self.embeddings.vectors(group, fields, ids), offsets)
        tables = [self.embeddings[table].weight for table in fields.values()]
        return Gather(columns, tables, offsets, sparse=self.config.sparse)

    def interests(self, inputs: dict[str, Any], candidate: torch.Tensor) -> list[torch.Tensor]:
        """`[Q, D]` per history, each candidate's own."""
        histories = [self._history(name, inputs) for name in self.units]
        query_to_user = inputs.get("query_to_user")
        return [
            unit(candidate, history, query_to_user=query_to_user)
            for unit, history in zip(self.units.values(), histories, strict=True)
        ]

    @torch.no_grad()
    def predict_weights(self, batch: Batch | dict[str, Any], history: str | None = None) -> Jagged:
        """Attention weights of every candidate over its user's behaviours.

        Args:
            batch: as in `forward`.
            history: which behaviour sequence; the first by default.

        Returns:
            Jagged of Q rows: row i holds the weights of candidate i, one per behaviour, oldest first.
        """
        inputs = inputs_of(batch)
        name = next(iter(self.units)) if history is None else history
        if name not in self.units:
            raise ValueError(f"history must be one of {', '.join(map(repr, self.units))}, got {name!r}")
        candidate = self.embeddings.vectors("candidate", self.config.candidate, inputs["candidate"])
        training = self.training
        self.eval()
        try:
            _, weights = self.units[name](
                candidate, self._history(name, inputs), query_to_user=inputs.get("query_to_user"), return_weights=True
            )
        finally:
            self.train(training)
        return weights
