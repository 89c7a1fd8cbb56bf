"""Claims about metrics that have no value and samples that are not there: said and saved, never a bare NaN."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import numpy as np
import pytest

from din_kernels import data
from din_kernels.models import DINConfig
from din_kernels.training import TrainingOptions, build, evaluate, metrics, predict, train

OPTIONS = TrainingOptions(epochs=1, batch_size=64)


@functools.cache
def generated() -> data.Generated:
    return data.generate(seed=0, users=40)


def model_for(interactions: data.Interactions):
    return build("embedding-mlp", DINConfig.default(interactions.n_items, interactions.n_categories, dim=6))


def one_class(samples: data.Samples) -> data.Samples:
    """The positives alone."""
    return dataclasses.replace(samples, candidates=samples.candidates[:, :1], labels=samples.labels[:, :1])


def one_class_of_each_user(samples: data.Samples) -> data.Samples:
    """Users with positives alone and users with negatives alone: the AUC of all is defined, that of a user is not."""
    kept = (samples.user % 2)[:, None]
    candidates, labels = (np.take_along_axis(each, kept, 1) for each in (samples.candidates, samples.labels))
    return dataclasses.replace(samples, candidates=candidates, labels=labels)


def strict(text: str):
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"JSON has no {word}"))


def test_held_out_samples_of_one_class_leave_the_epoch_saved(tmp_path):
    made = generated()
    split = dataclasses.replace(made.split, test=one_class(made.split.test))
    files = {"checkpoint": tmp_path / "a.pt", "output": tmp_path / "a.json"}
    model = model_for(made.interactions)
    (record,) = train(model, split, made.interactions, OPTIONS, base_auc=0.6, progress=False, **files)
    undefined = {"auc", "auc_seen", "user_auc", "user_auc_positives", "user_auc_none", "rela_impr"}
    assert {name for name, value in record.items() if isinstance(value, float) and math.isnan(value)} == undefined
    assert set(record["notes"]) == undefined
    count = len(split.test)
    assert record["notes"]["auc"] == f"labels must hold both classes, got {count} positives of {count}"
    assert record["logloss"] == pytest.approx(-np.log(predict(model, split.test, made.interactions)).mean(), rel=1e-12)
    assert (record["users_counted"], record["users_skipped"]) == (0, len(set(split.test.user.tolist())))
    (written,) = strict((tmp_path / "a.json").read_text())
    assert all(written[name] is None for name in undefined)
    assert written["logloss"] == record["logloss"]
    (resumed,) = train(
        model_for(made.interactions), split, made.interactions, OPTIONS, resume=True, checkpoint=tmp_path / "a.pt"
    )
    assert resumed["notes"] == record["notes"] and math.isnan(resumed["auc"])


def test_users_of_one_class_each_leave_the_global_metrics_as_they_are():
    made = generated()
    samples, model = one_class_of_each_user(made.split.test), model_for(made.interactions)
    found = evaluate(model, samples, made.interactions)
    scores, labels = predict(model, samples, made.interactions).ravel(), samples.labels.ravel() > 0
    difference = scores[labels][:, None] - scores[~labels]
    assert found["auc"] == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean(), abs=1e-12)
    assert set(found["notes"]) == {"user_auc", "user_auc_positives", "user_auc_none"}
    assert math.isnan(found["user_auc"])


def test_no_sample_at_all_has_no_metric_and_a_note_for_each():
    made = generated()
    none = made.split.test.take(np.zeros(len(made.split.test), bool))
    found = evaluate(model_for(made.interactions), none, made.interactions, train=made.split.train)
    assert set(found["notes"]) == {"auc", "logloss", "user_auc", "user_auc_positives", "user_auc_none", "auc_seen"}
    assert found["users_counted"] == found["users_skipped"] == 0


@pytest.mark.parametrize(
    ("base", "note"),
    [(0.5, "base_auc must differ from 0.5"), (math.nan, "base_auc must be defined, got nan")],
)
def test_rela_impr_over_a_base_that_says_nothing_is_nan_with_a_note(base, note, tmp_path):
    made, output = generated(), tmp_path / "a.json"
    model = model_for(made.interactions)
    (record,) = train(model, made.split, made.interactions, OPTIONS, base_auc=base, output=output, progress=False)
    assert math.isnan(record["rela_impr"]) and list(record["notes"]) == ["rela_impr"]
    assert note in record["notes"]["rela_impr"]
    assert not math.isnan(record["user_auc"])
    assert strict(output.read_text())[0]["rela_impr"] is None


def test_rela_impr_of_an_undefined_auc_is_undefined():
    with pytest.raises(metrics.Undefined, match="auc must be defined, got nan"):
        metrics.rela_impr(math.nan, 0.6)


@pytest.mark.parametrize("base", [-0.1, 1.1, math.inf])
def test_a_base_auc_that_is_no_auc_is_refused_before_training(base):
    made = generated()
    with pytest.raises(ValueError, match=r"base_auc must lie in 0..1, got"):
        train(model_for(made.interactions), made.split, made.interactions, OPTIONS, base_auc=base)


def behaviours(lengths: list[int], labels: bool = False) -> data.Interactions:
    """Users with histories of these lengths over 50 items."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.arange(offsets[-1]) % 40
    ratings = (np.arange(len(items)) % 2).astype(np.float32) if labels else None
    return data.Interactions(offsets, items, np.zeros(50, np.int64), 1, labels=ratings)


def without_training() -> data.Split:
    """A split that was put together by hand: the functions of `data` refuse to make one without training samples."""
    none, nobody = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    return data.Split(data.Samples(none, none, none, nobody, nobody))


@pytest.mark.parametrize(
    ("lengths", "tuning", "missing", "longest"),
    [([2, 2, 1], False, "train", 2), ([3, 2], True, "train", 3), ([1, 1], False, "train", 1), ([], False, "train", 0)],
)
def test_histories_too_short_to_train_on_are_refused_with_the_reason(lengths, tuning, missing, longest, tmp_path):
    interactions = behaviours(lengths)
    with pytest.raises(ValueError, match="the split has no training samples"):
        data.split_amazon(interactions, tuning=tuning)
    with pytest.raises(ValueError) as raised:
        train(model_for(interactions), without_training(), interactions, OPTIONS, output=tmp_path / "a.json")
    assert str(raised.value) == (
        f"split.{missing} must hold samples, got none: the longest of {len(lengths)} histories has {longest} "
        f"behaviours; a user needs 3 for a training sample beside the one held out, 4 with tuning"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_lengths_that_the_refusal_names_are_enough():
    for lengths, tuning in (([3], False), ([4], True)):
        split = data.split_amazon(behaviours(lengths), tuning=tuning)
        assert len(split.train) and len(split.validation if tuning else split.test)


def test_a_split_by_user_without_training_or_test_samples_is_refused():
    for lengths, missing in (([1, 1, 1, 1], "train"), ([1, 5, 5, 5], None)):
        interactions = behaviours(lengths, labels=True)
        if missing is not None:
            with pytest.raises(ValueError, match="the split has no training samples"):
                data.split_movielens(interactions)
            split = without_training()
        else:
            split = data.split_movielens(interactions)
            none = split.test.take(np.zeros(len(split.test), bool))
            split, missing = dataclasses.replace(split, test=none), "test"
        with pytest.raises(ValueError, match=rf"split.{missing} must hold samples, got none: .* another of its user"):
            train(model_for(interactions), split, interactions, OPTIONS)


def test_a_split_without_anything_held_out_is_refused():
    made = generated()
    with pytest.raises(ValueError, match="split.test must hold samples, got none"):
        train(model_for(made.interactions), data.Split(made.split.train), made.interactions, OPTIONS)
