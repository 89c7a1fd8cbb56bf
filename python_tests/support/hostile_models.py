"""The entry points of `models`, `data` and `training` as `support.hostile_ops` has those of the ops."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from support.hostile_ops import Call, array, flag, floats, ids, number, whole

import din_kernels as dk
from din_kernels import data, models
from din_kernels.training import metrics

# --- models -----------------------------------------------------------------------------------------------------------


def _config_arguments(rng) -> dict[str, Any]:
    return {
        "tables": {"item": models.Table(6, 3), "user": models.Table(4, 2)}, "candidate": {"item": "item"},
        "histories": {"behaviours": [("item", "item")]}, "profile": {"user": "user"}, "context": {},
        "attention_hidden": (4,), "attention_activation": "sigmoid", "features": "concat", "normalize": "none",
        "scale": 1.0, "top_hidden": (5,), "activation": "dice", "item_bias": False, "embedding_std": 0.1,
        "max_length": 10, "sparse": False,
    }  # fmt: skip


def _run_config(given):
    made = models.DIN(models.DINConfig(**given))
    return [list(each.weight.shape) for each in made.embeddings.values()] + [list(made.top[0].weight.shape)]


def _config_expected(given):
    tables = [[whole(each.rows), whole(each.dim)] for each in given["tables"].values()]
    width = {name: dim for name, (_, dim) in zip(given["tables"], tables, strict=True)}

    def of(fields):
        return sum(width[table] for table in fields.values())

    for name in ("item_bias", "sparse"):
        flag(given[name])
    number(given["scale"]), number(given["embedding_std"])
    assert given["max_length"] is None or whole(given["max_length"]) >= 0
    top_inputs = (
        of(given["candidate"]) * (1 + 2 * len(given["histories"])) + of(given["profile"]) + of(given["context"])
    )
    return [*tables, [whole((*given["top_hidden"], 1)[0]), top_inputs]]


_MODEL = models.DIN(models.DINConfig(**_config_arguments(None))).eval()
_WIDE = copy.deepcopy(_MODEL).double()


def _model_arguments(rng):
    return {
        "candidate": {"item": torch.tensor([1, 2, 5])},
        "histories": {"behaviours": {"offsets": torch.tensor([0, 3, 4]), "item": torch.tensor([0, 1, 1, 4])}},
        "profile": {"user": torch.tensor([3, 0])}, "query_to_user": torch.tensor([0, 0, 1]),
    }  # fmt: skip


def _run_model(given):
    return [_MODEL(given)]


def _model_expected(given):
    """The same layers, one by one, in double: gathered rows, the features of every pair, the top MLP."""
    item, user = (array(_WIDE.embeddings[name].weight) for name in ("item", "user"))
    behaviours = given["histories"]["behaviours"]
    rows, offsets = item[ids(behaviours["item"])], ids(behaviours["offsets"])
    users = np.arange(len(given["candidate"]["item"])) if given.get("query_to_user") is None else ids(
        given["query_to_user"]
    )  # fmt: skip
    candidate = item[ids(given["candidate"]["item"])]
    profile = user[ids(given["profile"]["user"])]
    assert len(profile) == len(offsets) - 1 and len(users) == len(candidate) and offsets[-1] == len(rows)
    logits, (first, last) = [], _WIDE.units["behaviours"].linears
    for q, u in zip(candidate, users, strict=True):
        k = rows[offsets[u] : offsets[u + 1]]
        phi = torch.from_numpy(np.concatenate([np.broadcast_to(q, k.shape), k, q - k, q * k], -1))
        w = last(torch.sigmoid(first(phi))).detach().numpy()
        interest = (w * k).sum(0)
        logits.append(np.concatenate([interest, q, interest * q, profile[u]]))
    return [_WIDE.top(torch.from_numpy(np.array(logits).reshape(len(candidate), -1)))]


# --- data -------------------------------------------------------------------------------------------------------------

_GENERATED = data.generate(seed=0, users=20)


def _batches_arguments(rng):
    return {
        "samples": _GENERATED.split.train, "interactions": _GENERATED.interactions, "batch_size": 7, "shuffle": False,
        "seed": 0, "epoch": 0, "max_length": 5,
    }  # fmt: skip


def _run_batches(given):
    made = data.batches(**given)
    first = next(iter(made))
    return [len(made), first.history_items, first.offsets, first.candidate_items]


def _batches_expected(given):
    samples, size = given["samples"], whole(given["batch_size"])
    assert isinstance(given["shuffle"], (bool, np.bool_))
    order = np.arange(len(samples))
    if given["shuffle"]:
        order = np.random.default_rng([whole(given["seed"]), whole(given["epoch"])]).permutation(order)
    rows, offsets, items = [], [0], given["interactions"].item_ids
    for begin, length in zip(samples.history_begin[order[:size]], samples.history_length[order[:size]], strict=True):
        kept = length if given["max_length"] is None else min(length, whole(given["max_length"]))
        rows += items[begin + length - kept : begin + length].tolist()
        offsets.append(len(rows))
    return [-(-len(samples) // size), np.array(rows), np.array(offsets), samples.candidates[order[:size]].reshape(-1)]


def _batch_arguments(rng):
    return vars(next(iter(data.batches(_GENERATED.split.train, _GENERATED.interactions, 3)))).copy()


def _values(value):
    value = value.values if isinstance(value, dk.Jagged) else value
    return list(value.shape) if value.device.type == "meta" else array(value)


def _run_batch(given):
    return [_values(getattr(data.Batch(**given), name)) for name in given]


def _batch_expected(given):
    return [_values(each) for each in given.values()]


# --- metrics ----------------------------------------------------------------------------------------------------------


def _metric_arguments(rng):
    return {
        "labels": torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]), "scores": floats(rng, 5).sigmoid(),
        "users": torch.tensor([3, 3, 4, 4, 4]), "weight": str(rng.choice(metrics.WEIGHTINGS)),
    }  # fmt: skip


def _numbers(value) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return array(value)
    found = np.asarray(value)
    assert found.dtype.kind in "biuf" and not isinstance(value, (bool, int, float))
    return found.astype(np.float64)


def _labels_and_scores(given):
    labels, scores = _numbers(given["labels"]), _numbers(given["scores"])
    assert labels.shape == scores.shape and labels.ndim == 1
    return labels, scores


def _pairwise(labels, scores) -> float:
    positives, negatives = scores[labels == 1], scores[labels == 0]
    higher, equal = positives[:, None] > negatives, positives[:, None] == negatives
    return float((higher + 0.5 * equal).mean())


def _run_auc(given):
    return [metrics.auc(given["labels"], given["scores"])]


def _auc_expected(given):
    return [_pairwise(*_labels_and_scores(given))]


def _run_user_auc(given):
    return list(metrics.user_auc(given["labels"], given["scores"], given["users"], given["weight"]))


def _user_auc_expected(given):
    labels, scores = _labels_and_scores(given)
    users = _numbers(given["users"])
    assert users.shape == labels.shape
    values, weights, names = [], [], np.unique(users)
    for name in names:
        own = users == name
        if 0 < labels[own].sum() < own.sum():
            values.append(_pairwise(labels[own], scores[own]))
            weights.append({"impressions": own.sum(), "positives": labels[own].sum(), "none": 1}[given["weight"]])
    return [np.average(values, weights=weights), len(values), len(names) - len(values)]


def _run_logloss(given):
    return [metrics.logloss(given["labels"], given["probabilities"], given["eps"])]


def _logloss_expected(given):
    labels, p = _labels_and_scores(given | {"scores": given["probabilities"]})
    p = np.clip(p, number(given["eps"]), 1 - number(given["eps"]))
    return [-np.log(np.where(labels == 1, p, 1 - p)).mean()]


def _rela_impr_expected(given):
    return [((number(given["auc"]) - 0.5) / (number(given["base_auc"]) - 0.5) - 1) * 100]


def _only(*names):
    def arguments(rng):
        given = _metric_arguments(rng) | {"eps": 1e-7}
        return {name: given["scores" if name == "probabilities" else name] for name in names}

    return arguments


CALLS: dict[str, Call] = {
    "DINConfig": Call(_config_arguments, _run_config, _config_expected),
    "DIN": Call(_model_arguments, _run_model, _model_expected),
    "batches": Call(_batches_arguments, _run_batches, _batches_expected),
    "Batch": Call(_batch_arguments, _run_batch, _batch_expected),
    "auc": Call(_only("labels", "scores"), _run_auc, _auc_expected),
    "user_auc": Call(_only("labels", "scores", "users", "weight"), _run_user_auc, _user_auc_expected),
    "logloss": Call(_only("labels", "probabilities", "eps"), _run_logloss, _logloss_expected),
    "rela_impr": Call(
        lambda rng: {"auc": 0.8, "base_auc": 0.7}, lambda given: [metrics.rela_impr(**given)], _rela_impr_expected
    ),
}
