import numpy as np
import pytest
from support.realdata import amazon_beauty, amazon_electronics  # noqa: F401  (fixtures)

from din_kernels import data


def _toy(lengths=(6, 0, 1, 2, 3, 9), n_items=12, seed=0):
    """Users with ragged histories, repeats included, over a few items of 3 categories."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return data.Interactions(offsets, rng.integers(0, n_items, offsets[-1]), np.arange(n_items) % 3, 3)


def _rows(samples, interactions):
    """Samples as `(user, history, candidates)`, the slow way."""
    return [
        (int(u), interactions.item_ids[b : b + n].tolist(), c.tolist())
        for u, b, n, c in zip(
            samples.user, samples.history_begin, samples.history_length, samples.candidates, strict=True
        )
    ]


def test_training_predicts_all_but_the_last_from_what_came_before():
    interactions = _toy()
    expected = []
    for user in range(interactions.n_users):
        items = interactions.items_of(user).tolist()
        expected += [(user, items[:k], items[k]) for k in range(1, len(items) - 1)]  # b_{k+1} from k = 1..n-2
    rows = _rows(data.split_amazon(interactions).train, interactions)
    assert [(user, history, pair[0]) for user, history, pair in rows] == expected


def test_the_test_is_the_last_item_of_every_user_with_two():
    interactions = _toy()
    rows = _rows(data.split_amazon(interactions).test, interactions)
    assert [row[0] for row in rows] == [0, 3, 4, 5]
    for user, history, pair in rows:
        assert [*history, pair[0]] == interactions.items_of(user).tolist()


def test_tuning_validates_on_the_item_before_the_last_and_hides_the_test():
    interactions = _toy()
    tuning, final = data.split_amazon(interactions, tuning=True), data.split_amazon(interactions)
    assert tuning.test is None
    for user, history, pair in _rows(tuning.validation, interactions):
        assert [*history, pair[0]] == interactions.items_of(user).tolist()[:-1]
    both = _rows(tuning.train, interactions) + _rows(tuning.validation, interactions)
    assert sorted(both) == sorted(_rows(final.train, interactions))  # the same negatives too


def test_labels_are_a_positive_and_its_negative():
    train = data.split_amazon(_toy()).train
    assert train.labels.dtype == np.float32
    assert train.labels.tolist() == [[1, 0]] * len(train)


@pytest.mark.parametrize("seed", range(5))
def test_paper_negatives_lie_outside_all_the_user_did(seed):
    interactions = _toy()
    split = data.split_amazon(interactions, negatives="paper", seed=seed)
    for samples in (split.train, split.test):
        for user, _, pair in _rows(samples, interactions):
            assert pair[1] not in interactions.items_of(user)


def test_strict_negatives_lie_outside_prefix_and_target_alone():
    interactions = _toy(lengths=(9,) * 40)
    future = 0
    for user, history, pair in _rows(data.split_amazon(interactions, negatives="strict").train, interactions):
        assert pair[1] not in [*history, pair[0]]
        future += pair[1] in interactions.items_of(user)
    assert future > 0


def test_negatives_are_uniform_over_what_may_be_drawn():
    interactions = data.Interactions(np.array([0, 30_002]), np.array([0] * 30_000 + [1, 2]), np.zeros(6, np.int64), 1)
    drawn = data.split_amazon(interactions).train.candidates[:, 1]
    shares = np.bincount(drawn, minlength=6) / len(drawn)
    assert shares[:3].tolist() == [0, 0, 0]
    assert shares[3:] == pytest.approx([1 / 3] * 3, abs=0.01)  # 4 standard deviations


def test_negatives_are_fixed_by_the_seed():
    first, again, other = (data.split_amazon(_toy(), seed=seed).train.candidates for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_a_user_who_did_everything_is_refused():
    interactions = data.Interactions(np.array([0, 3]), np.array([0, 1, 2]), np.zeros(3, np.int64), 1)
    with pytest.raises(ValueError, match="must leave an item to draw a negative from, got user 0 with all 3 items"):
        data.split_amazon(interactions)


def test_an_unknown_kind_of_negatives_is_refused():
    with pytest.raises(ValueError, match="negatives must be 'paper' or 'strict', got 'easy'"):
        data.split_amazon(_toy(), negatives="easy")


@pytest.mark.parametrize(
    ("lengths", "tuning", "reason"),
    [
        ((), False, "at least 3 behaviours, got 0 users with at most 0"),
        ((0,), False, "at least 3 behaviours, got 1 users with at most 0"),
        ((1, 2, 2), False, "at least 3 behaviours, got 3 users with at most 2"),
        ((3, 3), True, "at least 4 behaviours, got 2 users with at most 3"),
    ],
)
def test_a_split_without_training_samples_is_refused_with_the_reason(lengths, tuning, reason):
    with pytest.raises(ValueError, match=f"the split has no training samples: .*{reason}"):
        data.split(_toy(lengths), tuning=tuning)


@pytest.mark.parametrize(("lengths", "tuning"), [((1, 3), False), ((0, 4), True)])
def test_the_shortest_user_that_can_be_split_is_split(lengths, tuning):
    split = data.split(_toy(lengths), tuning=tuning)
    held_out = split.validation if tuning else split.test
    assert split.train.history_length.tolist() == [1]
    assert held_out.history_length.tolist() == [2]


def _ratings(users=10, each=4):
    n = users * each
    labels = (np.arange(n) % 3 == 0).astype(np.float32)
    return data.Interactions(np.arange(users + 1) * each, np.arange(n) % 7, np.arange(7), 7, labels=labels)


def test_movielens_users_are_either_trained_on_or_tested():
    split = data.split_movielens(_ratings(), train_users=6)
    train, test = set(split.train.user.tolist()), set(split.test.user.tolist())
    assert (len(train), len(test), train & test) == (6, 4, set())


def test_movielens_candidates_are_the_ratings_after_what_was_rated_before():
    interactions = _ratings()
    split = data.split(interactions)
    for samples in (split.train, split.test):
        place = samples.history_begin + samples.history_length
        assert (samples.history_begin == interactions.user_offsets[samples.user]).all()
        assert (samples.history_length >= 1).all()
        assert (samples.candidates[:, 0] == interactions.item_ids[place]).all()
        assert (samples.labels[:, 0] == interactions.labels[place]).all()
    assert len(split.train) + len(split.test) == 10 * 3


def test_movielens_tuning_keeps_the_test_users_out():
    tuning, final = (data.split_movielens(_ratings(), tuning=tuning) for tuning in (True, False))
    held = set(tuning.train.user.tolist()) | set(tuning.validation.user.tolist())
    assert held == set(final.train.user.tolist())
    assert tuning.test is None


def test_movielens_refuses_a_split_without_test_users_or_labels():
    with pytest.raises(ValueError, match=r"train_users must lie in 1..9, got 10"):
        data.split_movielens(_ratings(), train_users=10)
    with pytest.raises(ValueError, match="interactions must carry labels"):
        data.split_movielens(_toy())


def _rated_by(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.arange(offsets[-1]) % 7
    return data.Interactions(offsets, items, np.arange(7), 7, labels=np.ones(len(items), np.float32))


@pytest.mark.parametrize(
    ("lengths", "tuning", "reason"),
    [
        ((1,) * 10, False, "no training samples: .* of the 7 training users .*none has two ratings"),
        ((4, 4), True, "no training samples: .* of the 0 training users .1 of 2 are trained on"),
        ((4,), False, None),
        ((), False, None),
    ],
)
def test_movielens_without_training_samples_is_refused_with_the_reason(lengths, tuning, reason):
    expected = reason or f"at least 2 users, one to train on and one to test, got {len(lengths)}"
    with pytest.raises(ValueError, match=expected):
        data.split(_rated_by(lengths), tuning=tuning)


def test_movielens_without_test_or_validation_samples_is_refused_with_the_reason():
    order = np.random.default_rng(0).permutation(10)  # the first of these users are trained on
    lengths = np.full(10, 4)
    lengths[order[7:]] = 1
    with pytest.raises(ValueError, match="no test samples: .* of the 3 test users .7 of 10 are trained on. none has"):
        data.split(_rated_by(lengths))
    lengths = np.full(10, 4)
    lengths[order[:1]] = 1
    with pytest.raises(ValueError, match="no validation samples: .* of the 1 validation users"):
        data.split(_rated_by(lengths), tuning=True)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: data.split(None), "interactions must be Interactions, got NoneType"),
        (lambda: data.split_amazon([1]), "interactions must be Interactions, got list"),
        (lambda: data.split_amazon(_toy(), seed=0.5), "seed must be a whole number, got 0.5"),
        (lambda: data.split_amazon(_toy(), seed=None), "seed must be a whole number, got None"),
        (lambda: data.split_amazon(_toy(), seed=-1), "seed must be at least 0, got -1"),
        (lambda: data.split_amazon(_toy(), tuning="no"), "tuning must be True or False, got 'no'"),
        (lambda: data.split_movielens(_ratings(), train_users=2.0), "train_users must be a whole number, got 2.0"),
        (lambda: data.split_movielens(_ratings(), train_users=True), "train_users must be a whole number, got True"),
        (lambda: data.generate(users="9"), "users must be a whole number, got '9'"),
        (lambda: data.generate(seed=-2), "seed must be at least 0, got -2"),
    ],
)
def test_wrong_arguments_of_a_split_are_named(call, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        call()


@pytest.mark.realdata
def test_beauty_loads_and_splits_as_described(amazon_beauty):  # noqa: F811
    interactions = data.load(amazon_beauty)
    assert (interactions.n_users, interactions.n_items, interactions.n_categories) == (22_363, 12_101, 195)
    assert len(interactions.item_ids) == 198_502
    split = data.split(interactions)
    assert (len(split.train), len(split.test)) == (198_502 - 2 * 22_363, 22_363)
    every = np.concatenate([split.train.history_length, split.test.history_length])
    assert np.percentile(every, [50, 90, 99]).round().tolist() == pytest.approx([4, 19, 70], abs=1)


@pytest.mark.realdata
def test_popularity_ranks_beauty_as_described(amazon_beauty):  # noqa: F811
    interactions = data.load(amazon_beauty)
    split = data.split(interactions)
    popularity = np.bincount(np.delete(interactions.item_ids, interactions.user_offsets[1:] - 1), minlength=12_101)
    pairs = popularity[split.test.candidates]
    assert ((pairs[:, 0] > pairs[:, 1]) + 0.5 * (pairs[:, 0] == pairs[:, 1])).mean() == pytest.approx(0.648, abs=0.01)


@pytest.mark.realdata
def test_electronics_sample_holds_the_released_test_rows(amazon_electronics):  # noqa: F811
    sequences = amazon_electronics / "seq_random5000.txt"
    catalogue = data.load_amazon_prepared(sequences, items="listed")
    histories, rows = data.load_released_rows(amazon_electronics / "test_rows_5000.txt", catalogue)
    assert (len(rows), catalogue.n_items) == (5_000, 63_001)
    # Each row is its user's sequence: all but the last as history, the last as positive.
    user = {name: at for at, name in enumerate(catalogue.user_names.tolist())}
    for at in range(0, 5_000, 50):
        whole = catalogue.items_of(user[int(histories.user_names[at])])
        assert histories.items_of(at).tolist() == whole[:-1].tolist()
        assert rows.candidates[at, 0] == whole[-1]


@pytest.mark.realdata
def test_electronics_released_training_rows_are_labelled(amazon_electronics):  # noqa: F811
    catalogue = data.load_amazon_prepared(amazon_electronics / "seq_union.txt", items="listed")
    _, rows = data.load_released_rows(amazon_electronics / "train_rows_10000.txt", catalogue)
    assert rows.candidates.shape == rows.labels.shape == (10_000, 1)
    assert rows.labels.mean() == pytest.approx(0.5, abs=0.02)
