import dataclasses
import time

import numpy as np
import pytest
import torch
from support.realdata import amazon_beauty  # noqa: F401  (fixture)
from torch.utils._pytree import tree_leaves

from din_kernels import Jagged, data


def _toy(multiple=False, labels=False, users=30, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 12, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(0, 50, offsets[-1])
    rated = rng.integers(0, 2, len(items)).astype(np.float32) if labels else None
    if not multiple:
        return data.Interactions(offsets, items, np.arange(50) % 7, 7, labels=rated)
    each = np.arange(50) % 4  # an item without any category among them
    category_offsets = np.concatenate([[0], np.cumsum(each)])
    categories = rng.integers(0, 7, category_offsets[-1])
    return data.Interactions(offsets, items, categories, 7, category_offsets=category_offsets, labels=rated)


def _check_row(batch, row, samples, at, interactions, max_length):
    begin, end = batch.offsets[row], batch.offsets[row + 1]
    history = interactions.item_ids[samples.history_begin[at] :][: samples.history_length[at]]
    if max_length is not None:
        history = history[max(0, len(history) - max_length) :]
    assert batch.history_items[begin:end].tolist() == history.tolist()
    own = batch.query_to_user == row
    assert batch.candidate_items[own].tolist() == samples.candidates[at].tolist()
    assert batch.labels[own].tolist() == samples.labels[at].tolist()
    assert batch.sample_user[own].tolist() == [samples.user[at]] * samples.candidates.shape[1]
    assert batch.users[row] == samples.user[at]


@pytest.mark.parametrize("max_length", [None, 0, 1, 4, 100])
def test_rows_keep_their_most_recent_behaviours_and_their_own_candidates(max_length):
    interactions = _toy()
    train = data.split(interactions).train
    at = 0
    for batch in data.batches(train, interactions, 16, max_length=max_length):
        for row in range(len(batch.users)):
            _check_row(batch, row, train, at, interactions, max_length)
            at += 1
    assert at == len(train)


def test_a_positive_and_its_negative_share_one_history():
    interactions = _toy()
    batch = next(iter(data.batches(data.split(interactions).train, interactions, 3)))
    assert batch.query_to_user.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.labels.tolist() == [1, 0] * 3
    assert len(batch.offsets) == 4


def test_histories_are_packed_without_padding():
    interactions = _toy()
    for batch in data.batches(data.split(interactions).train, interactions, 16):
        assert batch.offsets[0] == 0
        assert batch.offsets[-1] == len(batch.history_items) == len(batch.history_categories)


def test_one_category_per_item_comes_as_a_flat_tensor():
    interactions = _toy()
    batch = next(iter(data.batches(data.split(interactions).train, interactions, 16)))
    assert batch.history_categories.tolist() == (batch.history_items % 7).tolist()
    assert batch.candidate_categories.tolist() == (batch.candidate_items % 7).tolist()


def test_several_categories_per_item_come_as_jagged():
    interactions = _toy(multiple=True, labels=True)
    batch = next(iter(data.batches(data.split(interactions).train, interactions, 64)))
    for items, categories in [
        (batch.history_items, batch.history_categories),
        (batch.candidate_items, batch.candidate_categories),
    ]:
        assert isinstance(categories, Jagged)
        assert len(categories) == len(items)
        for at, item in enumerate(items.tolist()):
            low, high = interactions.category_offsets[item : item + 2]
            mine = categories.values[categories.offsets[at] : categories.offsets[at + 1]]
            assert mine.tolist() == interactions.category_ids[low:high].tolist()


def test_types_are_those_the_kernels_take():
    interactions = _toy()
    batch = next(iter(data.batches(data.split(interactions).train, interactions, 4)))
    for name in ("users", "history_items", "offsets", "candidate_items", "query_to_user", "sample_user"):
        assert getattr(batch, name).dtype == torch.int64, name
    assert batch.labels.dtype == torch.float32
    assert batch.to("cpu").history_items.tolist() == batch.history_items.tolist()


def test_every_sample_comes_once_per_epoch_and_the_last_batch_is_kept():
    interactions = _toy()
    train = data.split(interactions).train
    run = data.batches(train, interactions, 16, shuffle=True, seed=1)
    sizes = [len(batch.users) for batch in run]
    assert len(run) == len(sizes) == -(-len(train) // 16)
    assert sizes[-1] == len(train) - 16 * (len(sizes) - 1)
    positives = torch.cat([batch.candidate_items[0::2] for batch in run])
    assert sorted(positives.tolist()) == sorted(train.candidates[:, 0].tolist())


def test_the_order_is_fixed_by_seed_and_epoch():
    interactions = _toy()
    train = data.split(interactions).train

    def order(**which):
        return torch.cat(
            [b.candidate_items for b in data.batches(train, interactions, 16, shuffle=True, **which)]
        ).tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert order(seed=1, epoch=2) != order(seed=1, epoch=3)
    assert order(seed=1, epoch=2) != order(seed=2, epoch=2)


def test_no_samples_give_no_batches():
    interactions = _toy()
    train = data.split(interactions).train
    run = data.batches(train.take(np.arange(0)), interactions, 16)
    assert len(run) == len(list(run)) == 0


def test_a_batch_does_not_alias_the_samples():
    interactions = _toy()
    train = data.split(interactions).train
    before = train.candidates.copy()
    for batch in data.batches(train, interactions, 16):
        batch.candidate_items.zero_()
        batch.history_items.zero_()
        batch.labels.zero_()
    assert (train.candidates == before).all()
    assert (train.labels == [1, 0]).all()


def test_bad_sizes_are_named():
    interactions = _toy()
    train = data.split(interactions).train
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.batches(train, interactions, 0)
    with pytest.raises(ValueError, match="max_length must be at least 0 or None, got -1"):
        data.batches(train, interactions, 1, max_length=-1)


@pytest.mark.parametrize("multiple", [False, True])
def test_a_batch_moves_to_a_device_without_blocking(multiple):
    interactions = _toy(multiple=multiple)
    batch = next(iter(data.batches(data.split(interactions).train, interactions, 4)))
    moved = batch.to("meta", non_blocking=True)
    tensors = [leaf for field in dataclasses.fields(batch) for leaf in tree_leaves(getattr(moved, field.name))]
    assert len(tensors) == (11 if multiple else 9)  # two more where categories have offsets
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert isinstance(moved.history_categories, Jagged) == multiple


@pytest.mark.parametrize("multiple", [False, True])
def test_every_tensor_of_a_batch_is_pinned(multiple, monkeypatch):
    pinned = []

    def pin_memory(tensor):
        pinned.append(tensor.clone())  # a machine without an accelerator cannot pin
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    interactions = _toy(multiple=multiple)
    batch = next(iter(data.batches(data.split(interactions).train, interactions, 4)))
    made = batch.pin_memory()
    assert len(pinned) == (11 if multiple else 9)
    for field in dataclasses.fields(batch):
        before, after = (tree_leaves(getattr(each, field.name)) for each in (batch, made))
        for old, new in zip(before, after, strict=True):
            assert any(new is tensor for tensor in pinned), field.name
            assert torch.equal(old, new)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"batch_size": None}, "batch_size must be a whole number, got None"),
        ({"shuffle": "no"}, "shuffle must be True or False, got 'no'"),
        ({"seed": 1.0}, "seed must be a whole number, got 1.0"),
        ({"epoch": -1}, "epoch must be at least 0, got -1"),
        ({"max_length": "100"}, "max_length must be a whole number or None, got '100'"),
        ({"max_length": float("nan")}, "max_length must be a whole number or None, got nan"),
        ({"samples": None}, "samples must be Samples, got NoneType"),
        ({"interactions": {}}, "interactions must be Interactions, got dict"),
    ],
)
def test_wrong_arguments_of_batches_are_named(given, complaint):
    interactions = _toy()
    good = {"samples": data.split(interactions).train, "interactions": interactions, "batch_size": 4}
    with pytest.raises((TypeError, ValueError), match=complaint):
        data.batches(**(good | given))


@pytest.mark.realdata
def test_loading_and_batching_beauty_is_fast(amazon_beauty):  # noqa: F811
    begin = time.process_time()
    interactions = data.load(amazon_beauty)
    split = data.split(interactions)
    loaded = time.process_time()
    candidates = sum(len(batch.labels) for batch in data.batches(split.train, interactions, 512, shuffle=True))
    batched = time.process_time()
    assert candidates == 2 * len(split.train)
    # Measured 0.15 s and 0.04 s; a Python loop per sample takes seconds.
    assert loaded - begin < 1.5
    assert batched - loaded < 1.0
