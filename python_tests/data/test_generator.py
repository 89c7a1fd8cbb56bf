import numpy as np
import pytest

from din_kernels import data
from din_kernels.data.interactions import window_rows


@pytest.fixture(scope="module")
def generated():
    return data.generate(seed=0, users=2000)


def _relevant(generated, samples, same):
    """`[S, C]` how many behaviours of each row agree with the candidate in all of the item attributes `same`."""
    rows, offsets = window_rows(samples.history_begin, samples.history_length)
    owner = np.repeat(np.arange(len(samples)), np.diff(offsets))
    items = generated.interactions.item_ids[rows]
    counts = []
    for candidates in samples.candidates.T:
        agree = np.all([attribute[items] == attribute[candidates[owner]] for attribute in same], 0)
        counts.append(np.bincount(owner, agree, len(samples)))
    return np.stack(counts, 1)


def _pair_auc(scores):
    return ((scores[:, 0] > scores[:, 1]) + 0.5 * (scores[:, 0] == scores[:, 1])).mean()


def test_the_same_seed_gives_the_same_data():
    first, again, other = (data.generate(seed=seed, users=50) for seed in (3, 3, 4))
    assert (first.interactions.item_ids == again.interactions.item_ids).all()
    assert (first.split.test.candidates == again.split.test.candidates).all()
    assert first.interactions.item_ids[:20].tolist() != other.interactions.item_ids[:20].tolist()


def test_the_category_of_an_item_is_its_interest(generated):
    assert (generated.interactions.category_ids == generated.item_interest).all()


def test_both_candidates_of_a_pair_share_the_interest_and_differ_in_style(generated):
    for samples in (generated.split.train, generated.split.test):
        interest, style = generated.item_interest[samples.candidates], generated.item_style[samples.candidates]
        assert (interest[:, 0] == interest[:, 1]).all()
        assert (style[:, 0] != style[:, 1]).all()


def test_test_users_are_not_trained_on(generated):
    assert not set(generated.split.train.user.tolist()) & set(generated.split.test.user.tolist())


def test_histories_are_as_long_as_announced(generated):
    lengths = generated.interactions.lengths()
    assert (lengths.min(), lengths.max()) == (10, 60)


def test_behaviours_in_the_candidates_interest_decide(generated):
    both = _relevant(generated, generated.split.test, [generated.item_interest, generated.item_style])
    assert _pair_auc(both) > 0.95


def test_the_share_of_the_category_says_nothing(generated):
    interest = _relevant(generated, generated.split.test, [generated.item_interest])
    assert _pair_auc(interest) == 0.5


def test_popularity_says_nothing(generated):
    counts = data.item_counts(generated.split.train, generated.interactions)
    assert _pair_auc(counts[generated.split.test.candidates]) == pytest.approx(0.5, abs=0.05)


def test_styles_summed_over_the_history_say_little(generated):
    style = _relevant(generated, generated.split.test, [generated.item_style])
    assert _pair_auc(style) < 0.8


def test_fewer_than_two_users_are_refused():
    with pytest.raises(ValueError, match="users must be at least 2, got 1"):
        data.generate(users=1)
