"""Claims about recipes and options: a malformed one is refused with the file, the entry and what came."""

from __future__ import annotations

import copy
import functools
import json
import math
import re

import numpy as np
import pytest

from din_kernels import data
from din_kernels.models import DINConfig
from din_kernels.training import TrainingOptions, build, load_recipe, loop, recipe_names, sizes_of, train
from din_kernels.training.tables import require_fit, table_counts
from din_kernels.training.typed import fits

RECIPE = {
    "model": {
        "tables": {"item": {"rows": "items", "dim": 4}, "category": {"rows": "categories", "dim": 4}},
        "candidate": {"item": "item", "category": "category"},
        "histories": {"behaviours": [["item", "item"], ["category", "category"]]},
    },
    "training": {"epochs": 1, "lr": 0.01},
}


@functools.cache
def generated() -> data.Generated:
    return data.generate(seed=0, users=40)


def changed(entry: str, value) -> dict:
    """The recipe with one entry, a path such as "model.tables.item.dim", replaced."""
    made = copy.deepcopy(RECIPE)
    *folders, last = entry.split(".")
    functools.reduce(dict.__getitem__, folders, made)[last] = value
    return made


def test_the_recipe_of_these_tests_is_right(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(RECIPE))
    assert load_recipe(tmp_path / "a.json") == (RECIPE["model"], RECIPE["training"])


@pytest.mark.parametrize(
    ("entry", "value", "complaint"),
    [
        ("model", [], "model must be an object, got []"),
        ("model.colour", 1, "model must hold activation, .*, got colour"),
        ("model.tables", None, "model.tables must be an object, got None"),
        ("model.tables", {"item": 3}, "model.tables['item'] must be an object, got 3"),
        ("model.tables.item", {"rows": 3}, "model.tables['item'] must hold dim, got rows"),
        ("model.tables.item.dim", "8", "model.tables['item'].dim must be a whole number, got '8'"),
        ("model.tables.item.dim", True, "model.tables['item'].dim must be a whole number, got True"),
        ("model.tables.item.dim", 8.0, "model.tables['item'].dim must be a whole number, got 8.0"),
        ("model.tables.item.rows", 1.5, "model.tables['item'].rows must be a whole number or a text, got 1.5"),
        ("model.candidate", ["item"], "model.candidate must be an object, got ['item']"),
        ("model.candidate.item", 1, "model.candidate['item'] must be a text, got 1"),
        ("model.histories.behaviours", "item", "model.histories['behaviours'] must be a list, got 'item'"),
        (
            "model.histories.behaviours",
            [["item"]],
            "model.histories['behaviours'][0] must be a list of 2, got ['item']",
        ),
        ("model.attention_hidden", 80, "model.attention_hidden must be a list, got 80"),
        ("model.top_hidden", [80, "x"], "model.top_hidden[1] must be a whole number, got 'x'"),
        ("model.scale", "1", "model.scale must be a number, got '1'"),
        ("model.item_bias", 1, "model.item_bias must be true or false, got 1"),
        ("model.max_length", "all", "model.max_length must be a whole number or null, got 'all'"),
        ("model.max_length", True, "model.max_length must be a whole number or null, got True"),
        ("training", 3, "training must be an object, got 3"),
        ("training.epochs", "3", "training.epochs must be a whole number, got '3'"),
        ("training.epochs", -1, "epochs must be at least 0, got -1"),
        ("training.lr", [1], "training.lr must be a number, got [1]"),
        ("training.lr", 10**400, "training.lr must be finite, got 1000"),
        ("training.optimizer", ["adam"], "training.optimizer must be a text, got ['adam']"),
        ("training.optimizer", "lion", "optimizer must be one of 'adam', .*, got 'lion'"),
        ("training.seed", None, "training.seed must be a whole number, got None"),
    ],
)
def test_a_malformed_recipe_is_refused_with_file_and_entry(tmp_path, entry, value, complaint):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(changed(entry, value)))
    with pytest.raises(ValueError) as raised:
        load_recipe(path)
    pattern = re.escape(complaint).replace(r"\.\*", ".*")
    assert re.match(f"{re.escape(str(path))}: {pattern}", str(raised.value)), raised.value
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff\xfe", "config must be UTF-8, got byte 0xff"),
        (b"[" * 100_000, "too deeply nested"),
        (b'{"model": {}, "training": {"lr": NaN}}', "config must be JSON, got NaN"),
        (b'{"model": {}, "training": {"lr": 1e999}}', "training.lr must be finite, got inf"),
        (b'{"model": {}, "training": {"lr": 1, "lr": 2}}', "config must have every key once, got 'lr'"),
        (b'{"model": {}, "training": {"epochs": ' + b"9" * 5000 + b"}}", "Exceeds the limit"),
        (b"{}", "config must have the entries model and training, got none"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_name(tmp_path, content, complaint):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: {complaint}"):
        load_recipe(path)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(RECIPE).encode())
    assert load_recipe(tmp_path / "a.json")[1] == RECIPE["training"]


@pytest.mark.parametrize(
    ("entry", "value", "complaint"),
    [
        ("tables.item.rows", 5, "tables['item'] must have a row for each of the 3200 items, got 5 rows"),
        ("tables.category.rows", 99, "tables['category'] must have a row for each of the 100 categories, got 99 rows"),
        ("histories", {"clicks": [["item", "item"], ["category", "category"]]}, "histories must be among 'behaviours'"),
        ("profile", {"age": "item"}, "profile must have fields among 'user', got 'age'"),
        ("context", {"hour": "item"}, "context must have fields among none, got 'hour'"),
        ("max_length", -1, "max_length must be at least 0, got -1"),
    ],
)
def test_a_model_that_the_data_cannot_feed_is_refused_before_the_first_step(entry, value, complaint, monkeypatch):
    made = generated()
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("a step was taken"))
    settings = changed(f"model.{entry}", value)["model"]
    with pytest.raises(ValueError, match=re.escape(complaint)):
        config = DINConfig.from_dict(settings, sizes_of(made.interactions))
        train(build("din", config), made.split, made.interactions, TrainingOptions(), progress=False)


def test_a_table_of_users_must_hold_all_of_them():
    made = generated()
    settings = changed("model.tables.user", {"rows": 39, "dim": 4})["model"] | {"profile": {"user": "user"}}
    with pytest.raises(ValueError, match=r"tables\['user'\] must have a row for each of the 40 users, got 39 rows"):
        require_fit(DINConfig.from_dict(settings, sizes_of(made.interactions)), made.interactions)


def test_every_recipe_of_the_package_fits_the_generated_data():
    for name in recipe_names():
        require_fit(
            DINConfig.from_dict(load_recipe(name)[0], sizes_of(generated().interactions)), generated().interactions
        )


def test_counts_cover_the_rows_of_a_table_that_is_larger_than_the_data():
    made = generated()
    settings = changed("model.tables.item.rows", made.interactions.n_items + 7)["model"] | {"sparse": True}
    config = DINConfig.from_dict(settings, sizes_of(made.interactions))
    found = table_counts(config, made.split.train, made.interactions)["item"]
    assert len(found) == made.interactions.n_items + 7
    np.testing.assert_array_equal(found[:-7], data.item_counts(made.split.train, made.interactions))
    assert not found[-7:].any()
    options = TrainingOptions(optimizer="sparse-adagrad", mba=0.1)
    (record,) = train(build("din", config), made.split, made.interactions, options, progress=False)
    assert math.isfinite(record["loss"])


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"epochs": "3"}, TypeError, "epochs must be a whole number, got '3'"),
        ({"epochs": 1.5}, TypeError, "epochs must be a whole number, got 1.5"),
        ({"epochs": True}, TypeError, "epochs must be a whole number, got True"),
        ({"lr": None}, TypeError, "lr must be a number, got None"),
        ({"lr": math.nan}, ValueError, "lr must be finite, got nan"),
        ({"lr": 1e300}, ValueError, r"lr must be positive and finite in float32, got 1e\+300"),
        ({"lr": 0.0}, ValueError, "lr must be positive and finite in float32, got 0.0"),
        ({"lr_decay": 1e30, "epochs": 3}, ValueError, r"lr \* lr_decay \*\* \(epochs - 1\) must be finite in float32"),
        ({"mba": math.inf, "optimizer": "sparse-sgd"}, ValueError, "mba must be finite, got inf"),
        ({"l2": 1e300}, ValueError, r"l2 must be finite in float32, got 1e\+300"),
        ({"seed": -1}, ValueError, r"seed must lie in 0..2\^63 - 1, got -1"),
        ({"seed": 2**63}, ValueError, r"seed must lie in 0..2\^63 - 1, got 9223372036854775808"),
    ],
)
def test_options_of_a_wrong_type_or_out_of_range_are_refused(changes, error, complaint):
    with pytest.raises(error, match=complaint):
        TrainingOptions(**changes)


def test_numpy_numbers_become_pythons_so_that_a_checkpoint_can_hold_them():
    options = TrainingOptions(epochs=np.int64(2), lr=np.float32(0.5), seed=np.int32(3))
    assert [type(each) for each in (options.epochs, options.lr, options.seed)] == [int, float, int]
    assert options == TrainingOptions(epochs=2, lr=0.5, seed=3)


def test_an_error_shows_a_long_value_shortened():
    with pytest.raises(ValueError, match=r"^x must be a whole number, got 'a{56}\.\.\.$"):
        fits("x", "a" * 1000, int)
