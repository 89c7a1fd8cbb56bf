"""Mini-batch aware regularization as a penalty (paper section 5.1, equations 4 and 5)."""

from __future__ import annotations

import torch


def mba_penalty(
    weight: torch.Tensor,  # [V, D]
    ids: torch.Tensor,  # any shape
    counts: torch.Tensor,  # [V], n_j: training samples in which id j appears
    coeff: float,
    padding_idx: int | None,
    sparse: bool = False,
) -> torch.Tensor:
    """(lambda / 2) sum over the batch's unique ids j of ||w_j||^2 / n_j, fp32 at least; gradient lambda w_j / n_j."""
    unique = torch.unique(ids)
    if padding_idx is not None:
        unique = unique[unique != padding_idx]
    wide = torch.promote_types(weight.dtype, torch.float32)
    n = counts[unique].to(wide).clamp(min=1)
    rows = torch.nn.functional.embedding(unique, weight, sparse=sparse).to(wide)
    return 0.5 * coeff * (rows.square().sum(1) / n).sum()


def refuses(request) -> None:
    """The reference serves every request."""
