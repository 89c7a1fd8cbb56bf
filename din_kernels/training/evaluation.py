"""Scores of held-out samples and their metrics."""

from __future__ import annotations

import numpy as np
import torch

from din_kernels.data import Interactions, Samples, batches, seen_in_training
from din_kernels.models.base import Model
from din_kernels.training import metrics


@torch.no_grad()
def predict(model: Model, samples: Samples, interactions: Interactions, batch_size: int = 2048) -> np.ndarray:
    """Probabilities `[S, C]` of all candidates, in evaluation mode: Dice uses running statistics, so that a score does
    not depend on the other rows of its batch."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    scores = [
        torch.sigmoid(model(batch.to(device))).cpu().double().numpy()
        for batch in batches(samples, interactions, batch_size, max_length=model.config.max_length)
    ]
    model.train(training)
    return np.concatenate(scores).reshape(samples.labels.shape) if scores else np.empty(samples.labels.shape)


def evaluate(
    model: Model, samples: Samples, interactions: Interactions, batch_size: int = 2048, train: Samples | None = None
) -> dict[str, float | int]:
    """Metrics of `model` on `samples`.

    Args:
        train: where given, `auc_seen` is the AUC over rows all of whose candidates occur in these training samples.

    Returns:
        auc, logloss, user_auc (the paper's, weighted by impressions), user_auc_positives, user_auc_none (the other two
        weightings), users_counted and users_skipped (those with one class alone), and auc_seen.
    """
    scores = predict(model, samples, interactions, batch_size)
    labels, flat = samples.labels.ravel(), scores.ravel()
    users = np.repeat(samples.user, samples.labels.shape[1])
    weighted = {weight: metrics.user_auc(labels, flat, users, weight) for weight in metrics.WEIGHTINGS}
    result = {
        "auc": metrics.auc(labels, flat),
        "logloss": metrics.logloss(labels, flat),
        "user_auc": weighted["impressions"].value,
        "user_auc_positives": weighted["positives"].value,
        "user_auc_none": weighted["none"].value,
        "users_counted": weighted["impressions"].users_counted,
        "users_skipped": weighted["impressions"].users_skipped,
    }
    if train is not None:
        seen = seen_in_training(samples, train, interactions)
        if len(np.unique(samples.labels[seen])) == 2:
            result["auc_seen"] = metrics.auc(samples.labels[seen].ravel(), scores[seen].ravel())
    return result
