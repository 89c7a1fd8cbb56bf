"""AUC, logloss, the user AUC in its three weightings, and RelaImpr: numpy, float64, no loop over users."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from din_kernels import checks

WEIGHTINGS = ("impressions", "positives", "none")


class Undefined(ValueError):
    """The metric has no value on this input, though nothing is wrong with it: one class alone, or no row at all."""


class UserAUC(NamedTuple):
    """`value`, over `users_counted` users; `users_skipped` had only positives or only negatives."""

    value: float
    users_counted: int
    users_skipped: int


def auc(labels, scores) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counting half.

    Args:
        labels: `[Q]`, 0 or 1, array or CPU tensor.
        scores: `[Q]`, finite.

    Raises:
        ValueError: shapes that differ, labels outside {0, 1}, or scores that are not finite.
        Undefined: one class alone.
    """
    labels, scores = _checked(labels, scores)
    positives = int(labels.sum())
    if positives in (0, len(labels)):
        raise Undefined(f"labels must hold both classes, got {positives} positives of {len(labels)}")
    return float(_grouped_auc(labels, scores, np.zeros(len(labels), np.int64), 1)[0][0])


def logloss(labels, probabilities, eps: float = 1e-15) -> float:
    """Mean negative log likelihood of `labels [Q]` under `probabilities [Q]`, clipped to [eps, 1 - eps].

    Raises:
        ValueError: as `auc`, or probabilities outside [0, 1].
        Undefined: empty input.
    """
    checks.number("eps", eps, at_least=0, at_most=0.5)
    labels, probabilities = _checked(labels, probabilities, "probabilities")
    if not len(labels):
        raise Undefined("labels must not be empty")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(f"probabilities must lie in 0..1, got {probabilities.min()}..{probabilities.max()}")
    clipped = np.clip(probabilities, float(eps), 1 - float(eps))
    return float(-np.where(labels, np.log(clipped), np.log1p(-clipped)).mean())


def user_auc(labels, scores, users, weight: str = "impressions") -> UserAUC:
    """Mean of the users' own AUCs (paper, section 6.2), over users who have both classes.

    Args:
        labels: `[Q]`, 0 or 1.
        scores: `[Q]`.
        users: `[Q]`, integer ids.
        weight: a user's weight: "impressions" (its candidates, as in the paper), "positives" or "none".

    Raises:
        ValueError: as `auc`, or an unknown `weight`.
        Undefined: no user with both classes.

    Example:
        >>> user_auc([1, 0, 1, 0], [0.9, 0.1, 0.2, 0.8], [7, 7, 9, 9])
        UserAUC(value=0.5, users_counted=2, users_skipped=0)
    """
    if not isinstance(weight, str) or weight not in WEIGHTINGS:
        raise ValueError(f"weight must be one of {', '.join(WEIGHTINGS)}, got {weight!r}")
    labels, scores = _checked(labels, scores)
    users = _array("users", users, "biufUS")
    if users.dtype.kind == "f" and np.isnan(users).any():
        raise ValueError("users must be ids, got nan")
    if users.shape != labels.shape:
        raise ValueError(f"users must have the shape of labels {labels.shape}, got {users.shape}")
    names, user = np.unique(users, return_inverse=True)
    value, positives, negatives = _grouped_auc(labels, scores, user.reshape(-1), len(names))
    counted = (positives > 0) & (negatives > 0)
    if not counted.any():
        raise Undefined(f"users must have both classes, got none such of {len(names)} in labels")
    weights = {"impressions": positives + negatives, "positives": positives, "none": np.ones(len(names))}[weight]
    mean = np.average(value[counted], weights=weights[counted])
    return UserAUC(float(mean), int(counted.sum()), int(len(names) - counted.sum()))


def rela_impr(auc: float, base_auc: float) -> float:
    """Relative improvement in percent (paper, section 6.2): ((auc - 0.5) / (base_auc - 0.5) - 1) * 100.

    Raises:
        Undefined: base_auc is 0.5, or one of the two is not defined (nan).
    """
    for name, value in (("auc", auc), ("base_auc", base_auc)):
        if isinstance(value, float) and math.isnan(value):
            raise Undefined(f"{name} must be defined, got nan")
        checks.number(name, value)
    auc, base_auc = float(auc), float(base_auc)
    if base_auc == 0.5:
        raise Undefined("base_auc must differ from 0.5, the AUC of a random guess, got 0.5")
    return ((auc - 0.5) / (base_auc - 0.5) - 1) * 100


def or_nan(notes: dict[str, str], name: str, metric: Callable[..., Any], *inputs: Any) -> Any:
    """`metric(*inputs)`; where it is not defined nan, and the reason as `notes[name]`.

    Example:
        >>> notes = {}
        >>> or_nan(notes, "auc", auc, [1, 1], [0.2, 0.4])
        nan
        >>> notes
        {'auc': 'labels must hold both classes, got 2 positives of 2'}
    """
    try:
        return metric(*inputs)
    except Undefined as reason:
        notes[name] = str(reason)
        return math.nan


def _grouped_auc(labels, scores, group, n_groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(auc [G], positives [G], negatives [G])`; the auc of a group without both classes is NaN.

    With ranks r (ties share their mean rank), P positives and M negatives,
    auc = (sum of r over positives - P (P + 1) / 2) / (P M).
    """
    order = np.lexsort((scores, group))
    group, scores, labels = group[order], scores[order], labels[order]
    size = np.bincount(group, minlength=n_groups)
    group_begin = np.concatenate([[0], np.cumsum(size)[:-1]])
    place = np.arange(len(order))
    new = np.ones(len(order), bool)
    new[1:] = (group[1:] != group[:-1]) | (scores[1:] != scores[:-1])
    tie = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(order)) - 1
    rank = (first + last)[tie] / 2 - group_begin[group] + 1 if len(order) else place.astype(np.float64)
    positives = np.bincount(group[labels], minlength=n_groups)
    negatives = size - positives
    rank_sum = np.bincount(group[labels], rank[labels], n_groups)
    with np.errstate(invalid="ignore"):
        value = (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
    return value, positives, negatives


def _array(name: str, value, kinds: str = "biuf") -> np.ndarray:
    """A tensor, array or list as an array whose dtype is of one of NumPy's `kinds`; TypeError for anything else."""
    if isinstance(value, torch.Tensor):
        checks.is_tensor(name, value)
        checks.is_real(name, value if value.dtype != torch.bool else value.byte())
        if value.device.type == "meta":
            raise TypeError(f"{name} must be an array with values, got a tensor on the meta device")
        value = value.detach().cpu()
        value = value.double() if value.dtype in (torch.bfloat16, torch.float16) else value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}") from None
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__} of dtype {array.dtype}")
    return array


def _checked(labels, scores, name: str = "scores") -> tuple[np.ndarray, np.ndarray]:
    labels, scores = _array("labels", labels), _array(name, scores).astype(np.float64, copy=False)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"labels and {name} must both have shape [Q], got {labels.shape} and {scores.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {labels[~np.isin(labels, (0, 1))][0]}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} must be finite, got {scores[~np.isfinite(scores)][0]}")
    return labels.astype(bool), scores
