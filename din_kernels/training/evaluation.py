"""Scores of held-out samples and their metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from din_kernels.data import Interactions, Samples, batches, seen_in_training
from din_kernels.models.base import Model
from din_kernels.training import metrics
from din_kernels.training.errors import Diverged

USER_AUCS = {"user_auc": "impressions", "user_auc_positives": "positives", "user_auc_none": "none"}


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
) -> dict[str, Any]:
    """Metrics of `model` on `samples`.

    Args:
        train: where given, `auc_seen` is the AUC over rows all of whose candidates occur in these training samples.

    Returns:
        auc, logloss, user_auc (the paper's, weighted by impressions), user_auc_positives, user_auc_none (the other two
        weightings), users_counted and users_skipped (those with one class alone), and auc_seen. A metric that is not
        defined on `samples` is nan, and `notes`, which is there only then, has the reason by its name.

    Raises:
        Diverged: a score that is not finite.
    """
    scores = predict(model, samples, interactions, batch_size)
    if not np.isfinite(scores).all():
        raise Diverged(f"the scores of held-out samples must be finite, got {scores[~np.isfinite(scores)][0]}")
    labels, flat = samples.labels.ravel(), scores.ravel()
    users = np.repeat(samples.user, samples.labels.shape[1])
    notes: dict[str, str] = {}
    result: dict[str, Any] = {
        "auc": metrics.or_nan(notes, "auc", metrics.auc, labels, flat),
        "logloss": metrics.or_nan(notes, "logloss", metrics.logloss, labels, flat),
    }
    counted = 0
    for name, weight in USER_AUCS.items():
        found = metrics.or_nan(notes, name, metrics.user_auc, labels, flat, users, weight)
        result[name] = found if name in notes else found.value
        counted = 0 if name in notes else found.users_counted
    result |= {"users_counted": counted, "users_skipped": len(np.unique(users)) - counted}
    if train is not None:
        seen = seen_in_training(samples, train, interactions)
        chosen = samples.labels[seen].ravel(), scores[seen].ravel()
        result["auc_seen"] = metrics.or_nan(notes, "auc_seen", metrics.auc, *chosen)
    return result | ({"notes": notes} if notes else {})
