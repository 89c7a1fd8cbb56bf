"""Deep Interest Network (paper section 4.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from din_kernels.data.batches import Batch
from din_kernels.gather import Gather
from din_kernels.jagged import Jagged
from din_kernels.models.base import Model, inputs_of
from din_kernels.models.config import DINConfig
from din_kernels.models.embeddings import Lookups
from din_kernels.models.inputs import check_inputs
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
        sizes = {"dim": config.width, "hidden": config.attention_hidden, "activation": config.attention_activation}
        options = {"features": config.features, "normalize": config.normalize, "scale": config.scale}
        self.units = nn.ModuleDict({name: LocalActivationUnit(**sizes, **options) for name in config.histories})
        self._start_weights()

    def _start_weights(self) -> None:
        """Weights start near 1, as in sum pooling. Near 0 they may grow to either sign, and then no longer say what is
        relevant: on planted interests they were negative with 2 of 3 seeds."""
        if self.config.normalize == "none":
            for unit in self.units.values():
                nn.init.ones_(unit.linears[-1].bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for unit in self.units.values():
            unit.reset_parameters()
        self._start_weights()

    def _history(self, name: str, inputs: dict[str, Any], lookups: Lookups | None = None) -> Gather | Jagged:
        fields, ids = dict(self.config.histories[name]), inputs["histories"][name]
        return (lookups or self.embeddings.lookups(inputs)).history(f"histories[{name!r}]", fields, ids)

    def interests(
        self, inputs: dict[str, Any], candidate: torch.Tensor, lookups: Lookups | None = None
    ) -> list[torch.Tensor]:
        """`[Q, D]` per history, each candidate's own."""
        lookups = lookups or self.embeddings.lookups(inputs)
        query_to_user = inputs.get("query_to_user")
        return [
            unit(*_of_one_dtype(candidate, self._history(name, inputs, lookups)), query_to_user=query_to_user)
            for name, unit in self.units.items()
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
        check_inputs(self.config, self.embeddings, inputs)
        name = next(iter(self.units)) if history is None else history
        if name not in self.units:
            raise ValueError(f"history must be one of {', '.join(map(repr, self.units))}, got {name!r}")
        lookups = self.embeddings.lookups(inputs)
        candidate = lookups.vectors("candidate", self.config.candidate, inputs["candidate"])
        training = self.training
        self.eval()
        try:
            query, rows = _of_one_dtype(candidate, self._history(name, inputs, lookups))
            query_to_user = inputs.get("query_to_user")
            _, weights = self.units[name](query, rows, query_to_user=query_to_user, return_weights=True)
        finally:
            self.train(training)
        return weights


def _of_one_dtype(query: torch.Tensor, history: Gather | Jagged) -> tuple[torch.Tensor, Gather | Jagged]:
    """Both in the wider of their dtypes, where the tables of candidate and history differ."""
    dtype = history.dtype if isinstance(history, Gather) else history.values.dtype
    if dtype == query.dtype:
        return query, history
    wide = torch.promote_types(dtype, query.dtype)
    if isinstance(history, Gather):
        history = Jagged(history.rows(), history.offsets)
    return query.to(wide), history.to(wide)
