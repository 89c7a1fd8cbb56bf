"""Claims about training: equal on every backend, resumable bit for bit, attention that finds planted interests."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from support.realdata import amazon_beauty  # noqa: F401
from support.relevance import relevance_auc

from din_kernels import backends, data
from din_kernels.models import NAMES, DINConfig
from din_kernels.training import (
    PHASES,
    Optimizers,
    Stopwatch,
    TrainingOptions,
    build,
    evaluate,
    load_recipe,
    predict,
    recipe_names,
    sizes_of,
    table_counts,
    train,
    train_step,
)

TIMES = ("seconds", "train_seconds", "evaluation_seconds")


@functools.cache
def generated(seed: int = 0, users: int = 200) -> data.Generated:
    return data.generate(seed=seed, users=users)


def small_config(made: data.Generated, **changes) -> DINConfig:
    settings = {"dim": 6, "attention_hidden": (9, 5), "top_hidden": (16, 8)}
    return DINConfig.default(made.interactions.n_items, made.interactions.n_categories, **(settings | changes))


def fused():
    """Forces the CPU kernels on the activation unit."""
    reason = backends.unavailable("cpu")
    if reason is not None:
        pytest.skip(reason)
    return backends.use_backend("cpu", ops=("local_activation",))


@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("attention_activation", ["sigmoid", "prelu"])
def test_200_steps_in_double_lose_the_same_on_kernels_and_reference(attention_activation, normalize):
    made = generated(users=400)
    config = small_config(made, attention_activation=attention_activation, normalize=normalize)
    options = TrainingOptions(lr=3e-3)
    losses = {}
    for name, backend in (("fused", fused), ("reference", lambda: backends.use_backend("reference"))):
        model = build("din", config, seed=3).double()
        optimizers, losses[name] = Optimizers(model, options), []
        with backend():
            for epoch in range(200):
                for batch in data.batches(made.split.train, made.interactions, 24, shuffle=True, epoch=epoch):
                    losses[name].append(train_step(model, optimizers, batch).item())
                    if len(losses[name]) == 200:
                        break
                if len(losses[name]) == 200:
                    break
    assert losses["reference"][-1] < 0.9 * losses["reference"][0], "it learns"
    np.testing.assert_allclose(losses["fused"], losses["reference"], rtol=1e-9)


@pytest.mark.parametrize("kind", sorted(NAMES))
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adagrad"])
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(kind, optimizer, tmp_path):
    made = generated()
    options = TrainingOptions(epochs=3, batch_size=64, optimizer=optimizer, lr=1e-2, lr_decay=0.5, seed=5)

    def run(epochs, **more):
        model = build(kind, small_config(made), seed=5)
        torch.rand(3)  # whatever else drew numbers
        history = train(
            model, made.split, made.interactions, dataclasses.replace(options, epochs=epochs), progress=False, **more
        )
        return model.state_dict(), [{k: v for k, v in record.items() if k not in TIMES} for record in history]

    state, history = run(3)
    run(2, checkpoint=tmp_path / "run.pt")
    resumed_state, resumed_history = run(3, checkpoint=tmp_path / "run.pt", resume=True)
    assert resumed_history == history
    assert all(torch.equal(state[name], resumed_state[name]) for name in state)


def test_resume_restores_torchs_generator(tmp_path):
    made = generated()
    model = build("embedding-mlp", small_config(made))
    train(model, made.split, made.interactions, TrainingOptions(), checkpoint=tmp_path / "a", progress=False)
    expected = torch.rand(4)
    torch.manual_seed(99)
    train(
        model, made.split, made.interactions, TrainingOptions(), checkpoint=tmp_path / "a", resume=True, progress=False
    )
    assert torch.equal(torch.rand(4), expected)


def test_resume_with_other_options_or_another_model_is_refused(tmp_path):
    made = generated()
    config, path = small_config(made), tmp_path / "run.pt"
    train(build("din", config), made.split, made.interactions, TrainingOptions(), checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="option lr must be 0.5, got 0.001"):
        train(
            build("din", config), made.split, made.interactions, TrainingOptions(lr=0.5), checkpoint=path, resume=True
        )
    with pytest.raises(ValueError, match="model_name must be EmbeddingMLP, got DIN"):
        train(
            build("embedding-mlp", config),
            made.split,
            made.interactions,
            TrainingOptions(),
            checkpoint=path,
            resume=True,
        )
    with pytest.raises(ValueError, match="checkpoint must be given to resume"):
        train(build("din", config), made.split, made.interactions, TrainingOptions(), resume=True)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    made = generated()

    def run(seed):
        model = build("din", small_config(made), seed)
        return train(model, made.split, made.interactions, TrainingOptions(seed=seed, batch_size=64), progress=False)

    first, again, other = run(1)[0], run(1)[0], run(2)[0]
    assert first["loss"] == again["loss"] and first["auc"] == again["auc"]
    assert first["loss"] != other["loss"]


@pytest.mark.parametrize("kind", sorted(NAMES))
@pytest.mark.parametrize("attention_activation", ["sigmoid", "dice"])
def test_a_score_does_not_change_with_the_other_rows_of_its_batch(kind, attention_activation):
    made = generated()
    model = build(kind, small_config(made, embedding_std=0.3, attention_activation=attention_activation)).double()
    train(model, made.split, made.interactions, TrainingOptions(batch_size=64, lr=1e-2), progress=False)
    samples = made.split.test
    together = predict(model, samples, made.interactions, 1000)
    np.testing.assert_allclose(predict(model, samples, made.interactions, 1), together, rtol=1e-12)
    # A batch of positives alone, whose own statistics would tell that they are positives.
    positives = dataclasses.replace(samples, candidates=samples.candidates[:, :1], labels=samples.labels[:, :1])
    np.testing.assert_allclose(predict(model, positives, made.interactions, 1000), together[:, :1], rtol=1e-12)


def test_scores_with_batch_statistics_would_change_with_the_other_rows():
    made = generated()
    model = build("din", small_config(made, embedding_std=0.3)).double().train()
    batches = [list(data.batches(made.split.test, made.interactions, size)) for size in (50, 10)]
    scores = [torch.cat([model(batch) for batch in each]) for each in batches]
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_evaluation_reports_every_metric_and_leaves_the_mode_alone():
    made = generated()
    model = build("din", small_config(made)).train()
    found = evaluate(model, made.split.test, made.interactions, train=made.split.train)
    of_users = {"user_auc", "user_auc_positives", "user_auc_none", "users_counted", "users_skipped"}
    assert set(found) == {"auc", "auc_seen", "logloss"} | of_users
    assert model.training


def test_history_splits_the_time_and_is_written_as_json(tmp_path):
    made = generated()
    path = tmp_path / "deep" / "history.json"
    model, more = build("din", small_config(made)), {"output": path, "base_auc": 0.6, "progress": False}
    history = train(model, made.split, made.interactions, TrainingOptions(epochs=2), **more)
    assert json.loads(path.read_text()) == history
    for record in history:
        assert set(record["seconds"]) == set(PHASES)
        assert all(record["seconds"][phase] > 0 for phase in ("data", "embedding", "unit", "top_mlp", "optimizer"))
        assert record["train_seconds"] == pytest.approx(sum(record["seconds"].values()), abs=1e-5)
        assert record["rela_impr"] == pytest.approx(((record["user_auc"] - 0.5) / 0.1 - 1) * 100)


def test_measuring_time_changes_no_gradient():
    made = generated()
    batch = next(iter(data.batches(made.split.train, made.interactions, 32)))
    states = []
    for measured in (False, True):
        model = build("din", small_config(made))
        stopwatch = Stopwatch()
        with stopwatch.attached(model) if measured else contextlib.nullcontext():
            train_step(model, Optimizers(model, TrainingOptions()), batch)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("kind", "entered"),
    [
        ("din", ["embedding", "unit", "top_mlp", "unit", "embedding", "optimizer"]),
        ("embedding-mlp", ["embedding", "top_mlp", "embedding", "optimizer"]),
    ],
)
def test_a_step_enters_its_phases_forward_and_backward_in_order(kind, entered, monkeypatch):
    made = generated()
    batch = next(iter(data.batches(made.split.train, made.interactions, 32)))
    model, stopwatch, found = build(kind, small_config(made)), Stopwatch(), []
    monkeypatch.setattr(stopwatch, "enter", found.append)
    optimizers = Optimizers(model, TrainingOptions())
    with stopwatch.attached(model):
        train_step(model, optimizers, batch, stopwatch)
    assert found == entered
    with torch.no_grad():
        model(batch)
    assert found == entered, "no hook stays on the model"


def test_learning_rate_decays_per_epoch():
    model = build("embedding-mlp", small_config(generated()))
    optimizers = Optimizers(model, TrainingOptions(optimizer="sgd", lr=1.0, lr_decay=0.1))
    optimizers.start_epoch(2)
    assert optimizers.all[0].param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adagrad"])
def test_sparse_tables_train(optimizer):
    made = generated()
    model = build("din", small_config(made, sparse=True, item_bias=True))
    options = TrainingOptions(epochs=2, batch_size=64, optimizer=optimizer, lr=1e-2)
    first, second = train(model, made.split, made.interactions, options, progress=False)
    assert second["loss"] < first["loss"]


def test_every_recipe_of_the_package_loads_and_builds():
    made = generated()
    assert {"amazon_beauty", "generated", "paper"} <= set(recipe_names())
    for name in recipe_names():
        settings, training = load_recipe(name)
        TrainingOptions(**training)
        build("din", DINConfig.from_dict(settings, sizes_of(made.interactions)))


def test_the_papers_recipe_is_the_papers():
    training = TrainingOptions(**load_recipe("paper")[1])
    assert (training.optimizer, training.lr, training.lr_decay, training.batch_size) == ("sgd", 1.0, 0.1, 32)


def test_broken_recipe_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"model": {},\n "training": }')
    with pytest.raises(ValueError, match="mine.json:2: config must be JSON"):
        load_recipe(path)
    path.write_text('{"model": {}}')
    with pytest.raises(ValueError, match="must have the entries model and training, got model"):
        load_recipe(path)
    path.write_text('{"model": {}, "training": {"rate": 1}}')
    with pytest.raises(ValueError, match="got rate"):
        load_recipe(path)
    with pytest.raises(FileNotFoundError, match="one of amazon_beauty"):
        load_recipe(tmp_path / "none.json")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_din_finds_planted_interests_that_sum_pooling_cannot(seed):
    made = data.generate(seed=seed)
    settings, training = load_recipe("generated")
    config = DINConfig.from_dict(settings, sizes_of(made.interactions))
    options, found = TrainingOptions(**(training | {"seed": seed})), {}
    for name in NAMES:
        model = build(name, config, seed)
        history = train(model, made.split, made.interactions, options, progress=False)
        # Sum pooling overfits early: its best epoch against DIN's last.
        found[name] = max(record["user_auc"] for record in history) if name != "din" else history[-1]["user_auc"]
        if name == "din":
            assert relevance_auc(model, made) >= 0.9
    assert found["din"] >= found["embedding-mlp"] + 0.03


@pytest.mark.realdata
@pytest.mark.slow
def test_first_epoch_on_amazon_beauty_is_as_good_as_known_and_equal_on_both_backends(amazon_beauty):  # noqa: F811
    interactions = data.load(amazon_beauty)
    split = data.split(interactions)
    settings, training = load_recipe("amazon_beauty")
    config = DINConfig.from_dict(settings, sizes_of(interactions))
    options = TrainingOptions(**(training | {"epochs": 1}))

    def first_epoch(name, forced):
        with forced:
            return train(build(name, config, options.seed), split, interactions, options, progress=False)[0]

    ours = first_epoch("din", fused())
    theirs = first_epoch("din", backends.use_backend("reference"))
    assert abs(ours["auc"] - theirs["auc"]) < 0.001
    # A plain eager padded DIN reaches 0.785 here, sum pooling 0.786.
    assert ours["user_auc"] > 0.785 - 0.005
    assert first_epoch("embedding-mlp", backends.use_backend("reference"))["user_auc"] > 0.786 - 0.005


def test_sparse_optimizers_take_the_steps_of_dense_ones_and_mba_joins_in():
    """Adagrad moves no row without a gradient: sparse tables lose what dense ones lose. With MBA the losses part."""
    made = generated()
    losses = {}
    for name, sparse, changes in (
        ("dense", False, {"optimizer": "adagrad"}),
        ("sparse", True, {"optimizer": "sparse-adagrad"}),
        ("mba", True, {"optimizer": "sparse-adagrad", "mba": 0.5}),
    ):
        options = TrainingOptions(epochs=2, batch_size=64, lr=0.02, **changes)
        model = build("din", small_config(made, sparse=sparse), 0).double()
        history = train(model, made.split, made.interactions, options, progress=False)
        losses[name] = [record["loss"] for record in history]
    np.testing.assert_allclose(losses["sparse"], losses["dense"], rtol=1e-9)
    assert losses["mba"][1] > losses["dense"][1], "a regularizer costs training loss"


def test_l2_reaches_every_row_of_every_table_and_no_layer():
    made = generated()
    model = build("din", small_config(made))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizers = Optimizers(model, TrainingOptions(optimizer="sgd", lr=0.5, l2=0.1))
    optimizers.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step()
    for name, value in model.named_parameters():
        factor = 0.95 if name.startswith("embeddings") else 1.0
        torch.testing.assert_close(value.detach(), factor * before[name])


@pytest.mark.parametrize("optimizer", ["sparse-adagrad", "sparse-adam", "sparse-sgd", "sparse-rowwise-adagrad"])
def test_training_with_mba_resumes_bit_for_bit(optimizer, tmp_path):
    made = generated()
    options = TrainingOptions(epochs=2, batch_size=64, optimizer=optimizer, lr=1e-2, mba=0.1)

    def run(epochs, **more):
        model = build("din", small_config(made, sparse=True))
        train(model, made.split, made.interactions, dataclasses.replace(options, epochs=epochs), progress=False, **more)
        return model.state_dict()

    expected = run(2)
    run(1, checkpoint=tmp_path / "run.pt")
    resumed = run(2, checkpoint=tmp_path / "run.pt", resume=True)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_counts_of_tables_are_those_of_training_samples_alone():
    made = generated()
    config = small_config(made)
    found = table_counts(config, made.split.train, made.interactions)
    expected = data.item_counts(made.split.train, made.interactions)
    np.testing.assert_array_equal(found["item"].numpy(), expected)
    fields = {"item": "item", "category": "item"}
    shared = dataclasses.replace(config, candidate=fields, histories={"behaviours": list(fields.items())})
    with pytest.raises(ValueError, match="one field per table, got 'item' and 'category' in 'item'"):
        table_counts(shared, made.split.train, made.interactions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mba": 0.1}, "mba needs one of the optimizers sparse-adam, .* got adam"),
        ({"l2": 0.1, "optimizer": "sparse-sgd"}, "l2 reaches every row and needs dense tables, got"),
        ({"mba": -0.1, "optimizer": "sparse-sgd"}, "mba must be at least 0, got -0.1"),
    ],
)
def test_regularization_that_an_optimizer_cannot_do_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**changes)


def test_optimizers_refuse_tables_that_do_not_suit_them():
    made = generated()
    dense, sparse = build("din", small_config(made)), build("din", small_config(made, sparse=True))
    with pytest.raises(ValueError, match="sparse-adagrad needs sparse tables, got a config with sparse=False"):
        Optimizers(dense, TrainingOptions(optimizer="sparse-adagrad"))
    with pytest.raises(ValueError, match="l2 needs dense tables"):
        Optimizers(sparse, TrainingOptions(l2=0.1))
    with pytest.raises(ValueError, match="counts must hold table 'item' for mba, got none"):
        Optimizers(sparse, TrainingOptions(optimizer="sparse-adagrad", mba=0.1))
