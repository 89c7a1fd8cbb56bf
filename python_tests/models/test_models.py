"""Claims about DIN and the base model as models: inputs, fields, weights, configs."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from din_kernels import Jagged, data, models, nn
from din_kernels.models import DIN, DINConfig, EmbeddingMLP, Table, inputs_of

ITEMS, CATEGORIES = 50, 6


def small(**changes) -> DINConfig:
    settings = {"dim": 4, "attention_hidden": (8, 5), "top_hidden": (12, 7), "embedding_std": 0.5}
    return DINConfig.default(ITEMS, CATEGORIES, **(settings | changes))


def ragged_inputs(lengths=(0, 3, 1, 6), per_user=2, seed=0) -> dict:
    """A dict of inputs: users with `lengths` behaviours, `per_user` candidates each."""
    rng = np.random.default_rng(seed)
    queries, rows = len(lengths) * per_user, sum(lengths)

    def ids(high, n):
        return torch.from_numpy(rng.integers(0, high, n))

    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    return {
        "candidate": {"item": ids(ITEMS, queries), "category": ids(CATEGORIES, queries)},
        "histories": {"behaviours": {"offsets": offsets, "item": ids(ITEMS, rows), "category": ids(CATEGORIES, rows)}},
        "query_to_user": torch.arange(len(lengths)).repeat_interleave(per_user),
    }


def made(kind, config, seed=0):
    torch.manual_seed(seed)
    return kind(config).double()


@pytest.mark.parametrize("kind", [DIN, EmbeddingMLP])
def test_logits_have_one_entry_per_candidate_and_reach_every_parameter(kind):
    model = made(kind, small(item_bias=True))
    logits = model(ragged_inputs())
    assert logits.shape == (8,)
    logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # alpha starts at 0 but has a gradient; the unit's last bias adds to every weight
    assert without == []


@pytest.mark.parametrize("activation", ["dice", "prelu"])
@pytest.mark.parametrize("kind", [DIN, EmbeddingMLP])
def test_top_activation_is_the_configured_one(kind, activation):
    wanted = {"dice": nn.Dice, "prelu": torch.nn.PReLU}[activation]
    assert sum(isinstance(layer, wanted) for layer in made(kind, small(activation=activation)).top) == 2


def test_din_equals_its_formula_on_one_user():
    config = small(activation="prelu")
    model = made(DIN, config)
    inputs = ragged_inputs((3,), 1)
    k = torch.cat([model.embeddings[each](inputs["histories"]["behaviours"][each]) for each in ("item", "category")], 1)
    q = torch.cat([model.embeddings[each](inputs["candidate"][each]) for each in ("item", "category")], 1)
    x = torch.cat([q.expand_as(k), k, q - k, q * k], 1)
    unit = model.units["behaviours"]
    for linear in unit.linears[:-1]:
        x = torch.sigmoid(linear(x))
    interest = (unit.linears[-1](x) * k).sum(0, keepdim=True)
    expected = model.top(torch.cat([interest, q, interest * q], 1))
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


def test_embedding_mlp_equals_its_formula_and_gives_an_empty_history_zero_interest():
    model = made(EmbeddingMLP, small(activation="prelu"))
    inputs = ragged_inputs((0, 4), 1)
    k = torch.cat([model.embeddings[each](inputs["histories"]["behaviours"][each]) for each in ("item", "category")], 1)
    q = torch.cat([model.embeddings[each](inputs["candidate"][each]) for each in ("item", "category")], 1)
    interest = torch.stack([torch.zeros(8).double(), k.sum(0)])
    expected = model.top(torch.cat([interest, q, interest * q], 1))
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [DIN, EmbeddingMLP])
def test_candidates_sharing_a_history_score_as_with_a_copy_each(kind):
    model = made(kind, small()).eval()
    shared = ragged_inputs()
    user = shared["query_to_user"]
    history = shared["histories"]["behaviours"]
    copies = {}
    for name in ("item", "category"):
        packed = Jagged(history[name], history["offsets"])
        copies[name] = torch.cat([packed.values[packed.offsets[u] : packed.offsets[u + 1]] for u in user])
    copies["offsets"] = torch.nn.functional.pad(history["offsets"].diff()[user].cumsum(0), (1, 0))
    separate = {"candidate": shared["candidate"], "histories": {"behaviours": copies}}
    torch.testing.assert_close(model(shared), model(separate), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [DIN, EmbeddingMLP])
def test_several_categories_of_an_item_pool_to_their_mean(kind):
    model = made(kind, small()).eval()
    inputs = ragged_inputs((2, 1), 1)

    def twice(ids):  # the same id twice has the mean of the id once
        return Jagged(ids.repeat_interleave(2), torch.arange(0, 2 * len(ids) + 1, 2))

    doubled = {
        "candidate": inputs["candidate"] | {"category": twice(inputs["candidate"]["category"])},
        "histories": {
            "behaviours": inputs["histories"]["behaviours"]
            | {"category": twice(inputs["histories"]["behaviours"]["category"])}
        },
        "query_to_user": inputs["query_to_user"],
    }
    torch.testing.assert_close(model(doubled), model(inputs), rtol=1e-12, atol=1e-12)
    mixed = Jagged(torch.tensor([0, 1, 5]), torch.tensor([0, 2, 2, 3]))
    vectors = model.embeddings.vectors("candidate", {"category": "category"}, {"category": mixed})
    weight = model.embeddings["category"].weight
    torch.testing.assert_close(vectors, torch.stack([weight[:2].mean(0), 0 * weight[0], weight[5]]))
    sums = model.embeddings.sums(
        "history", {"category": "category"}, {"category": mixed, "offsets": torch.tensor([0, 2, 3])}
    )
    torch.testing.assert_close(sums, torch.stack([weight[:2].mean(0), weight[5]]))


@pytest.mark.parametrize("kind", [DIN, EmbeddingMLP])
def test_profile_context_and_several_histories_enter_the_score(kind):
    shared = [("item", "item"), ("category", "category")]
    base = small()
    config = dataclasses.replace(
        base,
        tables=base.tables | {"user": Table(4, 3), "hour": Table(24, 2)},
        histories={"clicked": shared, "bought": shared},
        profile={"user": "user"},
        context={"hour": "hour"},
    )
    model = made(kind, config).eval()
    one = ragged_inputs()
    inputs = {
        "candidate": one["candidate"],
        "histories": {
            "clicked": one["histories"]["behaviours"],
            "bought": ragged_inputs((2, 0, 0, 1))["histories"]["behaviours"],
        },
        "profile": {"user": torch.arange(4)},
        "context": {"hour": torch.arange(8)},
        "query_to_user": one["query_to_user"],
    }
    logits = model(inputs)
    for group, name in (("profile", "user"), ("context", "hour")):
        changed = model(inputs | {group: {name: inputs[group][name].flip(0)}})
        assert (changed != logits).any(), group
    clicked, bought = inputs["histories"].values()
    changed = model(inputs | {"histories": {"clicked": bought, "bought": clicked}})
    assert (changed != logits).any()


def test_tables_are_shared_by_candidate_and_history_and_start_small():
    torch.manual_seed(0)
    model = DIN(DINConfig.default(5000, 40))
    assert sorted(model.embeddings) == ["category", "item"]
    assert model.embeddings["item"].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.units["behaviours"].dim == 128


def test_weights_are_one_jagged_row_per_candidate_and_pool_to_the_interest():
    model = made(DIN, small())
    inputs = ragged_inputs()
    weights = model.predict_weights(inputs)
    assert weights.lengths().tolist() == [0, 0, 3, 3, 1, 1, 6, 6]
    assert model.training, "predict_weights leaves the mode alone"
    candidate = model.embeddings.vectors("candidate", model.config.candidate, inputs["candidate"])
    pooled = model.interests(inputs, candidate)[0]
    history = model._history("behaviours", inputs)
    rows = history.rows()[history.offsets[3] : history.offsets[4]]
    torch.testing.assert_close(pooled[6], weights.values[weights.offsets[6] : weights.offsets[7]] @ rows)


def test_a_batch_of_the_loader_is_the_dict_that_it_documents():
    generated = data.generate(seed=0, users=40)
    interactions = generated.interactions
    batch = next(iter(data.batches(generated.split.train, interactions, 16)))
    for kind in models.NAMES.values():
        model = made(kind, DINConfig.default(interactions.n_items, interactions.n_categories, 4)).eval()
        assert torch.equal(model(batch), model(inputs_of(batch)))


def test_missing_field_is_named():
    inputs = ragged_inputs()
    del inputs["histories"]["behaviours"]["category"]
    with pytest.raises(
        ValueError, match=r"histories\['behaviours'\] must hold field 'category', got 'offsets', 'item'"
    ):
        made(DIN, small())(inputs)


def test_config_survives_json():
    config = small(profile={"item": "item"}, item_bias=True, attention_hidden=(7,))
    assert DINConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidate": {"item": "x"}}, "field 'item' must name one of the tables 'item', 'category', got 'x'"),
        ({"histories": {"behaviours": [("item", "item")]}}, "must be as wide as the candidate \\(8\\), got width 4"),
        ({"histories": {}}, "at least one behaviour sequence"),
        ({"tables": {"item": Table(0, 4), "category": Table(3, 4)}}, "rows and dim of at least 1"),
        ({"activation": "relu"}, "activation"),
        ({"normalize": "sum"}, "normalize"),
    ],
)
def test_wrong_config_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scale": "1"}, TypeError, "scale must be a number, got str"),
        ({"embedding_std": float("nan")}, ValueError, "embedding_std must be at least 0, got nan"),
        ({"max_length": -1}, ValueError, "max_length must be at least 0, got -1"),
        ({"max_length": 2.5}, TypeError, "max_length must be an integer, got float"),
        (
            {"attention_hidden": (8, 0)},
            ValueError,
            r"attention_hidden must be 0 to 3 widths of at least 1, got \(8, 0\)",
        ),
        ({"top_hidden": (8, -1)}, ValueError, r"top_hidden must be widths of at least 1, got \(8, -1\)"),
        ({"top_hidden": "200"}, TypeError, "top_hidden must be a sequence of widths, got str"),
        ({"sparse": "no"}, TypeError, "sparse must be a bool, got str"),
        ({"item_bias": 1}, TypeError, "item_bias must be a bool, got int"),
        ({"dim": 4.0}, TypeError, "Table.dim must be an integer, got float"),
    ],
)
def test_a_wrong_number_of_a_config_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        small(**changes)


def test_unknown_setting_and_unknown_size_are_named():
    with pytest.raises(ValueError, match="got width"):
        DINConfig.from_dict(small().to_dict() | {"width": 3})
    settings = small().to_dict() | {"tables": {"item": {"rows": "things", "dim": 4}}}
    with pytest.raises(ValueError, match="rows must be a number or one of 'items', got 'things'"):
        DINConfig.from_dict(settings, {"items": 3})


def test_sparse_tables_give_sparse_gradients_and_the_same_values():
    dense, sparse = made(DIN, small()), made(DIN, small(sparse=True))
    for model in (dense, sparse):
        model(ragged_inputs()).sum().backward()
    grad = sparse.embeddings["item"].weight.grad
    assert grad.is_sparse
    torch.testing.assert_close(grad.to_dense(), dense.embeddings["item"].weight.grad)
