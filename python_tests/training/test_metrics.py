import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from din_kernels.training import metrics


def _scored(seed, size=500, users=20, levels=12):
    """Labels, scores with many ties, users of unequal size."""
    rng = np.random.default_rng(seed)
    users = (rng.random(size) ** 2 * users).astype(np.int64)
    return rng.integers(0, 2, size), rng.integers(0, levels, size) / levels, users


def _user_auc_by_loop(labels, scores, users, weight):
    values, weights, skipped = [], [], 0
    for user in np.unique(users):
        own, own_scores = labels[users == user], scores[users == user]
        if own.min() == own.max():
            skipped += 1
            continue
        values.append(sklearn_metrics.roc_auc_score(own, own_scores))
        weights.append({"impressions": len(own), "positives": own.sum(), "none": 1}[weight])
    return np.average(values, weights=weights), len(values), skipped


@pytest.mark.parametrize("levels", [1, 2, 12, 10**6])
def test_auc_agrees_with_sklearn_with_and_without_ties(levels):
    labels, scores, _ = _scored(0, levels=levels)
    assert metrics.auc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_auc_is_the_share_of_ordered_pairs_with_ties_halved(rows):
    labels, scores = np.array([row[0] for row in rows]), np.array([float(row[1]) for row in rows])
    if labels.all() or not labels.any():
        return
    difference = scores[labels][:, None] - scores[~labels]
    assert metrics.auc(labels, scores) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean(), abs=1e-12)


def test_tied_scores_give_exactly_one_half():
    assert metrics.auc([1, 0, 0], [0.3, 0.3, 0.3]) == 0.5


def test_logloss_agrees_with_sklearn_at_certain_probabilities_too():
    labels, scores, _ = _scored(1)
    scores[:5], scores[5:10] = 0.0, 1.0
    expected = sklearn_metrics.log_loss(labels, np.clip(scores, 1e-15, 1 - 1e-15))
    assert metrics.logloss(labels, scores) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weight", metrics.WEIGHTINGS)
def test_user_auc_agrees_with_a_loop_over_sklearn(weight):
    labels, scores, users = _scored(2)
    users[:3], labels[:3] = 1000, 1  # a user with positives alone
    value, counted, skipped = _user_auc_by_loop(labels, scores, users, weight)
    result = metrics.user_auc(labels, scores, users, weight=weight)
    assert result.value == pytest.approx(value, abs=1e-12)
    assert (result.users_counted, result.users_skipped) == (counted, skipped)


def test_the_three_weightings_differ_where_users_differ_in_size_and_share():
    # User 1: AUC 1 from 1 positive and 1 negative. User 2: AUC 0 from 1 positive and 5 negatives.
    # User 3: AUC 1/2 from 3 positives and 1 negative.
    users = np.repeat([1, 2, 3], [2, 6, 4])
    labels = np.array([1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0])
    scores = np.array([2, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1.0])
    values = [metrics.user_auc(labels, scores, users, weight=weight).value for weight in metrics.WEIGHTINGS]
    assert values == pytest.approx([(2 * 1 + 6 * 0 + 4 * 0.5) / 12, (1 * 1 + 1 * 0 + 3 * 0.5) / 5, (1 + 0 + 0.5) / 3])


def test_the_three_weightings_coincide_on_one_pair_per_user():
    rng = np.random.default_rng(3)
    users, labels = np.repeat(np.arange(50), 2), np.tile([1, 0], 50)
    scores = rng.random(100)
    values = [metrics.user_auc(labels, scores, users, weight=weight).value for weight in metrics.WEIGHTINGS]
    assert values == pytest.approx([(scores[0::2] > scores[1::2]).mean()] * 3)


def test_user_auc_does_not_depend_on_the_order_of_rows():
    labels, scores, users = _scored(4)
    order = np.random.default_rng(5).permutation(len(labels))
    assert metrics.user_auc(labels, scores, users) == metrics.user_auc(labels[order], scores[order], users[order])


def test_tensors_are_taken_as_arrays_are():
    labels, scores, users = _scored(6)
    tensors = torch.tensor(labels, dtype=torch.float32), torch.tensor(scores), torch.tensor(users)
    assert metrics.user_auc(*tensors) == metrics.user_auc(labels, scores, users)
    assert metrics.auc(*tensors[:2]) == metrics.auc(labels, scores)


def test_rela_impr_gives_the_papers_own_figure():
    # Paper, table 3: DIN 0.7337 against the base model 0.7300 is 1.61% on MovieLens.
    assert metrics.rela_impr(0.7337, 0.7300) == pytest.approx(1.61, abs=0.005)


def test_metrics_name_bad_input():
    with pytest.raises(ValueError, match=r"labels and scores must both have shape \[Q\], got \(2,\) and \(3,\)"):
        metrics.auc([1, 0], [1, 2, 3])
    with pytest.raises(ValueError, match="labels must be 0 or 1, got 2"):
        metrics.auc([1, 2], [1, 2])
    with pytest.raises(ValueError, match="scores must be finite, got nan"):
        metrics.auc([1, 0], [1, float("nan")])
    with pytest.raises(ValueError, match="labels must hold both classes, got 2 positives of 2"):
        metrics.auc([1, 1], [1, 2])
    with pytest.raises(ValueError, match=r"probabilities must lie in 0..1, got 0.5..1.5"):
        metrics.logloss([1, 0], [0.5, 1.5])
    with pytest.raises(ValueError, match="labels must not be empty"):
        metrics.logloss([], [])
    with pytest.raises(ValueError, match="weight must be one of impressions, positives, none, got 'clicks'"):
        metrics.user_auc([1, 0], [1, 2], [0, 0], weight="clicks")
    with pytest.raises(ValueError, match=r"users must have the shape of labels \(2,\), got \(1,\)"):
        metrics.user_auc([1, 0], [1, 2], [0])
    with pytest.raises(ValueError, match="users must have both classes, got none such of 2"):
        metrics.user_auc([1, 0], [1, 2], [0, 1])
    with pytest.raises(ValueError, match="base_auc must differ from 0.5"):
        metrics.rela_impr(0.7, 0.5)
