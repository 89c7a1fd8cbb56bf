"""The paper's base model (section 4.2): embedding, sum pooling, MLP."""

from __future__ import annotations

from typing import Any

import torch

from din_kernels.models.base import Model, per_candidate
from din_kernels.models.embeddings import Lookups


class EmbeddingMLP(Model):
    """Embedding & MLP: as `DIN`, but a history is summed, the same for every candidate.

    Args:
        config: as for `DIN`; what belongs to the attention is not used.
    """

    def interests(
        self, inputs: dict[str, Any], candidate: torch.Tensor, lookups: Lookups | None = None
    ) -> list[torch.Tensor]:
        """`[Q, D]` per history: the sum of the user's behaviours."""
        lookups = lookups or self.embeddings.lookups(inputs)
        sums = [
            lookups.sums(f"histories[{name!r}]", dict(fields), inputs["histories"][name])
            for name, fields in self.config.histories.items()
        ]
        return [per_candidate(each, inputs) for each in sums]
