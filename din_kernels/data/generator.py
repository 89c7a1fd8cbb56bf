"""Planted interests: data on which attention must beat sum pooling, made from a seed, without any file.

Items lie in an interest (their category) and have one of a few styles in it. A user has some interests and prefers one
style in each, whatever it prefers in the others. Both candidates of a pair come from one interest of the user: the
positive has the style that the user prefers there, the negative another one, which the user often prefers elsewhere. So
popularity and the share of categories say nothing, and the history as a whole says little: the few behaviours in the
candidate's own interest decide. Sum pooling would need a direction of its own for each of INTERESTS * STYLES kinds of
items, more than an embedding holds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from din_kernels.data import arguments
from din_kernels.data.interactions import Interactions, Samples, Split

# The difficulty, fixed once. Counting the behaviours of a candidate's interest and style ranks 97% of pairs rightly.
INTERESTS = 100
STYLES = 4
ITEMS_PER_STYLE = 8
USER_INTERESTS = (5, 6)  # fewest and most interests of a user
SKEW = 1.0  # the k-th interest of a user takes a share of the behaviours proportional to k ** -SKEW
HISTORY_LENGTH = (10, 60)
FAITHFULNESS = 0.95  # share of behaviours in the preferred style; the others have any style
PAIRS_PER_USER = 4
TEST_FRACTION = 0.25


class Generated(NamedTuple):
    """`interactions` with their `split`; `item_interest [V]` and `item_style [V]`, int64, tell what was planted."""

    interactions: Interactions
    split: Split
    item_interest: np.ndarray
    item_style: np.ndarray


def generate(seed: int = 0, users: int = 6000) -> Generated:
    """Users with planted interests, and pairs of candidates that only the relevant behaviours tell apart.

    Args:
        seed: of everything.
        users: U; a quarter of them, whole, are test users.

    Returns:
        `Generated`; a sample has two candidates (positive, negative) of one interest, and the user's whole history.

    Raises:
        TypeError: seed or users is no whole number.
        ValueError: fewer than 2 users, or a negative seed.

    Example:
        >>> generated = generate(seed=0, users=100)
        >>> len(generated.split.train), len(generated.split.test)
        (300, 100)
    """
    seed, users = arguments.whole("seed", seed, 0), arguments.whole("users", users, 2)
    rng = np.random.default_rng(seed)
    item = np.arange(INTERESTS * STYLES * ITEMS_PER_STYLE)
    item_interest, item_style = item // (STYLES * ITEMS_PER_STYLE), item // ITEMS_PER_STYLE % STYLES

    def draw(interest, style):
        return (interest * STYLES + style) * ITEMS_PER_STYLE + rng.integers(0, ITEMS_PER_STYLE, len(interest))

    most = USER_INTERESTS[1]
    count = rng.integers(USER_INTERESTS[0], most + 1, users)
    interests = rng.random((users, INTERESTS)).argsort(1)[:, :most]
    styles = rng.integers(0, STYLES, (users, most))

    lengths = rng.integers(HISTORY_LENGTH[0], HISTORY_LENGTH[1] + 1, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(users), lengths)
    shares = np.where(np.arange(most) < count[:, None], (1.0 + np.arange(most)) ** -SKEW, 0.0)
    upper = np.cumsum(shares / shares.sum(1, keepdims=True), 1)[:, :-1]
    which = (rng.random(len(owner))[:, None] > upper[owner]).sum(1)
    which = np.minimum(which, count[owner] - 1)  # a cumulative sum may end a rounding error below 1
    faithful = rng.random(len(owner)) < FAITHFULNESS
    style = np.where(faithful, styles[owner, which], rng.integers(0, STYLES, len(owner)))
    history = draw(interests[owner, which], style)

    sample_user = np.repeat(np.arange(users), PAIRS_PER_USER)
    which = rng.integers(0, count[sample_user])  # rare interests are asked for as often as common ones
    interest, preferred = interests[sample_user, which], styles[sample_user, which]
    positive = draw(interest, preferred)
    negative = draw(interest, (preferred + rng.integers(1, STYLES, len(preferred))) % STYLES)

    interactions = Interactions(offsets, history, item_interest, INTERESTS)
    samples = Samples(
        sample_user,
        offsets[sample_user],
        lengths[sample_user],
        np.stack([positive, negative], 1),
        np.tile(np.array([1, 0], np.float32), (len(sample_user), 1)),
    )
    is_test = sample_user >= users - max(1, round(TEST_FRACTION * users))
    return Generated(interactions, Split(samples.take(~is_test), test=samples.take(is_test)), item_interest, item_style)
