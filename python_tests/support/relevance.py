"""How well attention weights find the behaviours that share the candidate's planted interest."""

from __future__ import annotations

import numpy as np
import torch

from din_kernels import data
from din_kernels.models import DIN
from din_kernels.training import metrics


def relevance_auc(model: DIN, generated: data.Generated) -> float:
    """Mean over held-out candidates of the AUC with which weights rank behaviours of the candidate's interest first."""
    same, weights, candidate, candidates = [], [], [], 0
    for batch in data.batches(generated.split.test, generated.interactions, 512):
        each = model.predict_weights(batch)
        owner = torch.repeat_interleave(torch.arange(len(each)), each.lengths())
        user = batch.query_to_user[owner]
        row = torch.arange(len(owner)) - each.offsets[owner] + batch.offsets[user]
        same.append(
            generated.item_interest[batch.history_items[row]] == generated.item_interest[batch.candidate_items[owner]]
        )
        weights.append(each.values)
        candidate.append(owner + candidates)
        candidates += len(each)
    return metrics.user_auc(np.concatenate(same).astype(int), torch.cat(weights), torch.cat(candidate), "none").value
