"""Mini-batch aware regularization (paper section 5.1) as a public function."""

from __future__ import annotations

import torch

from din_kernels import backends, checks
from din_kernels.backends.reference.mba_penalty import mba_penalty as _reference


def mba_penalty(
    weight: torch.Tensor, ids: torch.Tensor, counts: torch.Tensor, coeff: float, padding_idx: int | None = None
) -> torch.Tensor:
    """(coeff / 2) * sum over the unique ids j of ||w_j||^2 / n_j, a scalar that adds coeff * w_j / n_j to the gradient.

    Args:
        weight: `[V, D]`, an embedding table.
        ids: integer tensor of any shape, the ids of the batch; duplicates count once.
        counts: `[V]`, n_j: the number of training samples in which id j appears.
        coeff: the paper's lambda, at least 0.
        padding_idx: an id that is never regularized.

    Raises:
        TypeError, ValueError, IndexError: naming the argument, what was expected and what came; an id of the batch with
            n_j = 0 is a ValueError.
    """
    checks.is_tensor("weight", weight, 2, "[V, D]")
    checks.is_floating("weight", weight)
    checks.is_tensor("ids", ids)
    checks.is_index("ids", ids)
    checks.is_tensor("counts", counts, 1, "[V]")
    checks.has_shape("counts", counts, (weight.shape[0],), " (one per row of weight)")
    if coeff < 0:
        raise ValueError(f"coeff must be at least 0, got {coeff}")
    if checks.values_readable(ids) and ids.numel():
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= weight.shape[0]:
            raise IndexError(f"ids must lie in 0..{weight.shape[0] - 1} (rows of weight), got {low}..{high}")
        used = ids.reshape(-1) if padding_idx is None else ids[ids != padding_idx]
        if used.numel() and float(counts[used].min()) <= 0:
            raise ValueError(f"counts must be positive for every id of the batch, got {float(counts[used].min())}")
    backends.select(backends.Request("mba_penalty", weight.device.type, weight.dtype))
    return _reference(weight, ids, counts, coeff, padding_idx)
