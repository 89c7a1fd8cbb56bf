"""The paper's base model (section 4.2): embedding, sum pooling, MLP."""

from __future__ import annotations

from typing import Any

import torch

from din_kernels.models.base import Model, per_candidate


class EmbeddingMLP(Model):
    """Embedding & MLP: as `DIN`, but a history is summed, the same for every candidate.

    Args:
        config: as for `DIN`; what belongs to the attention is not used.
    """

    def interests(self, inputs: dict[str, Any], candidate: torch.Tensor) -> list[torch.Tensor]:
        """`[Q, D]` per history: the sum of the user's behaviours."""
        return [
            per_candidate(self.embeddings.sums(f"histories[{name!r}]", dict(fields), inputs["histories"][name]), inputs)
            for name, fields in self.config.histories.items()
        ]
