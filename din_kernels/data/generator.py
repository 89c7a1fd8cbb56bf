"""Planted interests: data on which attention must beat sum pooling, made from a seed, without any file.

Items lie in interests (their category) and have a style within it. A user has a few interests and, in each, a preferred style
of its own. A candidate comes from one of the user's interests; it is positive when its style is the one that the user prefers
there, and negative when it is a style that the user prefers in another interest. So neither popularity, nor the user's
categories, nor the styles summed over the history tell them apart: one must look at the behaviours of the candidate's own
interest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from din_kernels.data.interactions import Interactions, Samples, Split

# The difficulty, fixed once.
INTERESTS = 60
STYLES = 6
ITEMS_PER_STYLE = 8
USER_INTERESTS = (3, 6)  # fewest and most interests of a user
HISTORY_LENGTH = (10, 60)
FAITHFULNESS = 0.85  # share of behaviours in the preferred style; the others have a random one
PAIRS_PER_USER = 4
TEST_FRACTION = 0.25


class Generated(NamedTuple):
    """`interactions` with their `split`; `item_interest [V]` and `item_style [V]` int64 tell what was planted."""

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
        `Generated`; samples have two candidates (positive, negative) of one interest, and whole histories.

    Raises:
        ValueError: fewer than 2 users.
    """
    if users < 2:
        raise ValueError(f"users must be at least 2, got {users}")
    rng = np.random.default_rng(seed)
    item = np.arange(INTERESTS * STYLES * ITEMS_PER_STYLE)
    item_interest, item_style = item // (STYLES * ITEMS_PER_STYLE), item // ITEMS_PER_STYLE % STYLES

    def draw(interest, style):
        return (interest * STYLES + style) * ITEMS_PER_STYLE + rng.integers(0, ITEMS_PER_STYLE, len(interest))

    most = USER_INTERESTS[1]
    count = rng.integers(USER_INTERESTS[0], most + 1, users)
    interests = rng.random((users, INTERESTS)).argsort(1)[:, :most]
    # A user's interests differ in style, so that the style of one is wrong in every other.
    styles = rng.random((users, STYLES)).argsort(1)[:, :most]

    lengths = rng.integers(HISTORY_LENGTH[0], HISTORY_LENGTH[1] + 1, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(users), lengths)
    slot = rng.integers(0, count[owner])
    faithful = rng.random(len(owner)) < FAITHFULNESS
    style = np.where(faithful, styles[owner, slot], rng.integers(0, STYLES, len(owner)))
    history = draw(interests[owner, slot], style)

    sample_user = np.repeat(np.arange(users), PAIRS_PER_USER)
    wanted = rng.integers(0, count[sample_user])
    other = (wanted + rng.integers(1, count[sample_user])) % count[sample_user]
    interest = interests[sample_user, wanted]
    positive = draw(interest, styles[sample_user, wanted])
    negative = draw(interest, styles[sample_user, other])

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
