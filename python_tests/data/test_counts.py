import numpy as np
import pytest

from din_kernels import data


def _toy(multiple=False, users=30, seed=0, dtype=np.int64):
    """Users with ragged histories over 50 items of 7 categories, several to an item with `multiple`."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 12, users))])
    items = rng.integers(0, 50, offsets[-1]).astype(dtype)
    if not multiple:
        return data.Interactions(offsets.astype(dtype), items, (np.arange(50) % 7).astype(dtype), 7)
    category_offsets = np.concatenate([[0], np.cumsum(np.arange(50) % 4)])
    categories = rng.integers(0, 7, category_offsets[-1])
    return data.Interactions(offsets, items, categories, 7, category_offsets=category_offsets)


@pytest.mark.parametrize("max_length", [None, 3])
@pytest.mark.parametrize("count", ["samples", "occurrences"])
@pytest.mark.parametrize("multiple", [False, True])
def test_counts_are_those_of_the_expanded_samples(multiple, count, max_length):
    interactions = _toy(multiple=multiple, users=12)
    train = data.split_amazon(interactions).train
    items, categories = np.zeros(50, np.int64), np.zeros(7, np.int64)
    for at in range(len(train)):
        history = interactions.item_ids[train.history_begin[at] :][: train.history_length[at]]
        history = history if max_length is None else history[-max_length:]
        for candidate in train.candidates[at]:  # positive and negative each count as a sample
            ids = np.append(history, candidate)
            for counts, own in ((items, ids), (categories, interactions.categories_of(ids)[0])):
                np.add.at(counts, np.unique(own) if count == "samples" else own, 1)
    assert data.item_counts(train, interactions, max_length, count).tolist() == items.tolist()
    assert data.category_counts(train, interactions, max_length, count).tolist() == categories.tolist()


def test_counts_do_not_depend_on_the_chunk(monkeypatch):
    interactions = _toy()
    train = data.split(interactions).train
    whole = data.item_counts(train, interactions)
    monkeypatch.setattr("din_kernels.data.counts._CHUNK", 20)
    assert (data.item_counts(train, interactions) == whole).all()


def test_an_unknown_count_is_refused():
    interactions = _toy()
    with pytest.raises(ValueError, match="count must be 'samples' or 'occurrences', got 'users'"):
        data.item_counts(data.split(interactions).train, interactions, count="users")


def test_a_pair_is_seen_when_training_had_both_as_behaviours_or_positives():
    # User 0 trains on 0 -> 1; 2 is held out. User 1 trains on 3 -> 4; 0 is held out.
    interactions = data.Interactions(np.array([0, 3, 6]), np.array([0, 1, 2, 3, 4, 0]), np.zeros(8, np.int64), 1)
    split = data.split_amazon(interactions)
    pairs = data.Samples(
        *(np.zeros(4, np.int64),) * 3, np.array([[0, 1], [2, 0], [4, 3], [0, 7]]), np.zeros((4, 2), np.float32)
    )
    assert data.seen_in_training(pairs, split.train, interactions).tolist() == [True, False, True, False]


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.uint16, ">i8", np.uint64])
def test_narrow_and_unsigned_ids_are_counted_in_int64(dtype):
    # 60,000 items and 40,000 behaviours: a key of both passes 2**31.
    rng = np.random.default_rng(0)
    n_items, users, each = 60_000, 1_000, 40
    favourites = rng.integers(0, n_items, (users, 60))  # so that a history often holds its candidate
    items = np.take_along_axis(favourites, rng.integers(0, 60, (users, each)), 1).ravel()
    categories = np.arange(n_items) % 500
    interactions = data.Interactions(
        (np.arange(users + 1) * each).astype(dtype), items.astype(dtype), categories.astype(dtype), 500
    )
    rows = data.split_amazon(interactions).test
    samples = data.Samples(
        rows.user.astype(dtype),
        rows.history_begin.astype(dtype),
        rows.history_length.astype(dtype),
        rows.candidates.astype(dtype),
        rows.labels,
    )
    expected_items, expected_categories = np.zeros(n_items, np.int64), np.zeros(500, np.int64)
    for user in range(users):
        for candidate in rows.candidates[user]:
            ids = np.unique(np.append(items[user * each : user * each + each - 1], candidate))
            expected_items[ids] += 1
            expected_categories[np.unique(categories[ids])] += 1
    assert (data.item_counts(samples, interactions, None) == expected_items).all()
    assert (data.category_counts(samples, interactions, None) == expected_categories).all()


def test_narrow_offsets_of_categories_do_not_overflow():
    # Item 127 in int8: `items + 1` would wrap to -128.
    offsets = np.arange(129) * 2
    interactions = data.Interactions([0, 1], [0], np.arange(256) % 5, 5, category_offsets=offsets.astype(np.uint16))
    values, ends = interactions.categories_of(np.array([127], np.int8))
    assert (values.tolist(), ends.tolist()) == ([254 % 5, 255 % 5], [0, 2])


@pytest.mark.parametrize("count", ["samples", "occurrences"])
def test_counts_of_a_hand_made_case(count):
    # The history 1, 1, 0 with the candidates 1 and 2: two pairs, both of which hold 0 and 1.
    interactions = data.Interactions(np.array([0, 3], np.uint8), np.array([1, 1, 0], np.int16), np.zeros(4, int), 1)
    samples = data.Samples([0], [0], [3], [[1, 2]], [[True, False]])
    assert samples.labels.dtype == np.float32
    expected = {"samples": [2, 2, 1, 0], "occurrences": [2, 5, 1, 0]}
    assert data.item_counts(samples, interactions, count=count).tolist() == expected[count]


def _refusals():
    good = {"user_offsets": [0, 2], "item_ids": [0, 1], "category_ids": [0, 0], "n_categories": 1}
    rows = {"user": [0], "history_begin": [0], "history_length": [1], "candidates": [[0, 1]], "labels": [[1.0, 0.0]]}
    for fields, complaint in [
        ({"item_ids": np.array([0.0, 1.0])}, "item_ids must have an integer dtype, got float64"),
        ({"item_ids": np.array([0, 1], np.float32)}, "item_ids must have an integer dtype, got float32"),
        ({"item_ids": np.array([False, True])}, "item_ids must have an integer dtype, got bool"),
        ({"item_ids": ["0", "1"]}, "item_ids must have an integer dtype, got <U1"),
        ({"item_ids": None}, "item_ids must have an integer dtype, got object"),
        ({"item_ids": np.array([2**63, 0], np.uint64)}, "item_ids must fit int64, got 9223372036854775808"),
        ({"item_ids": [2**70, 0]}, "item_ids must have an integer dtype, got object"),
        ({"item_ids": [[0], [1]]}, r"item_ids must have shape \[N\], got \[2, 1\]"),
        ({"item_ids": [[0], [1, 0]]}, r"item_ids must be an array of whole numbers \[N\], got list"),
        ({"item_ids": np.ma.masked_array([0, 1], [False, True])}, "item_ids must be an array of .* a masked array"),
        ({"item_ids": [0, 5]}, r"item_ids must lie in 0..1, got 0..5"),
        ({"user_offsets": np.array([0.0, 2.0])}, "user_offsets must have an integer dtype, got float64"),
        ({"user_offsets": [0, 1]}, "user_offsets must rise from 0 to 2"),
        ({"user_offsets": [0, 3, 2]}, "user_offsets must rise from 0 to 2"),
        ({"category_ids": [0.0, 0.0]}, "category_ids must have an integer dtype, got float64"),
        ({"category_offsets": [0.0, 1.0, 2.0]}, "category_offsets must have an integer dtype, got float64"),
        ({"n_categories": 1.0}, "n_categories must be a whole number, got 1.0"),
        ({"n_categories": -1}, "n_categories must be at least 0, got -1"),
        ({"labels": [1.0]}, "labels must have one entry per behaviour .2., got 1"),
        ({"labels": [1.0, np.nan]}, "labels must lie in 0..1, got nan..nan"),
        ({"labels": [5.0, 3.0]}, "labels must lie in 0..1, got 3.0..5.0"),
        ({"labels": [1j, 0]}, "labels must have a real dtype, got complex128"),
        ({"item_names": ["a"]}, "item_names must have one entry per id .2., got 1"),
        ({"user_names": ["a", "b"]}, "user_names must have one entry per id .1., got 2"),
    ]:
        yield data.Interactions, good | fields, complaint
    for fields, complaint in [
        ({"user": [0.0]}, "user must have an integer dtype, got float64"),
        ({"candidates": [[0.0, 1.0]]}, "candidates must have an integer dtype, got float64"),
        ({"candidates": [0, 1]}, r"candidates must have shape \[S, C\], got \[2\]"),
        ({"history_begin": [-1]}, "history_begin must not be negative, got -1"),
        ({"history_length": [1, 1]}, "history_length must have one row per sample .1., got 2"),
        ({"labels": [[1.0]]}, r"labels must have the shape of candidates \[1, 2\], got \[1, 1\]"),
        ({"labels": [[2.0, 0.0]]}, "labels must lie in 0..1, got 0.0..2.0"),
    ]:
        yield data.Samples, rows | fields, complaint


@pytest.mark.parametrize(("made", "fields", "complaint"), list(_refusals()))
def test_ids_that_are_no_integers_or_do_not_fit_are_refused_by_name(made, fields, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        made(**fields)


def test_empty_lists_are_ids():
    interactions = data.Interactions([0], [], [], 0)
    assert (interactions.n_users, interactions.n_items, interactions.item_ids.dtype) == (0, 0, np.int64)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"user": [1]}, "user must lie in 0..0, got 1..1"),
        ({"candidates": [[0, 2]]}, "candidates must lie in 0..1, got 0..2"),
        ({"history_begin": [2]}, "must lie within the 2 behaviours, got 2 and 1 in row 0"),
        ({"history_length": [2**63 - 1]}, "must lie within the 2 behaviours, got 0 and 9223372036854775807 in row 0"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda samples, interactions: data.batches(samples, interactions, 4),
        lambda samples, interactions: data.item_counts(samples, interactions),
        lambda samples, interactions: data.category_counts(samples, interactions),
        lambda samples, interactions: data.seen_in_training(samples, samples, interactions),
    ],
)
def test_samples_outside_their_interactions_are_refused_wherever_they_are_used(use, fields, complaint):
    interactions = data.Interactions([0, 2], [0, 1], [0, 0], 1)
    rows = {"user": [0], "history_begin": [0], "history_length": [1], "candidates": [[0, 1]], "labels": [[1.0, 0.0]]}
    with pytest.raises(ValueError, match=complaint):
        use(data.Samples(**(rows | fields)), interactions)


@pytest.mark.parametrize("max_length", [-1, 2.5, "3", True])
def test_counts_refuse_a_length_that_is_none(max_length):
    interactions = data.Interactions([0, 2], [0, 1], [0, 0], 1)
    samples = data.Samples([0], [0], [1], [[0, 1]], [[1, 0]])
    with pytest.raises((TypeError, ValueError), match="max_length must be"):
        data.item_counts(samples, interactions, max_length)


def test_a_user_or_an_item_that_does_not_exist_is_refused():
    interactions = data.Interactions([0, 2], [0, 1], [0, 0], 1)
    for user in (-1, 1):
        with pytest.raises((IndexError, ValueError), match="user must"):
            interactions.items_of(user)
    for item in (-1, 2):
        with pytest.raises(IndexError, match="items must lie in 0..1"):
            interactions.categories_of(np.array([item]))
