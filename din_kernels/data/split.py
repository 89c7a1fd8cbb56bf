"""The papers' splits: Amazon by position with one sampled negative per positive, MovieLens by user."""

from __future__ import annotations

import numpy as np

from din_kernels.data import arguments
from din_kernels.data.interactions import Interactions, Samples, Split

# The paper trains on 100,000 of MovieLens-20M's 138,493 users.
MOVIELENS_TRAIN_USERS = 100_000
MOVIELENS_TRAIN_FRACTION = 100_000 / 138_493


def split(interactions: Interactions, seed: int = 0, tuning: bool = False, negatives: str = "paper") -> Split:
    """`split_movielens` where behaviours carry labels, else `split_amazon`.

    Raises:
        TypeError, ValueError: what these two raise.
    """
    arguments.is_a("interactions", interactions, Interactions)
    if interactions.labels is not None:
        return split_movielens(interactions, seed=seed, tuning=tuning)
    return split_amazon(interactions, negatives=negatives, seed=seed, tuning=tuning)


def split_amazon(interactions: Interactions, negatives: str = "paper", seed: int = 0, tuning: bool = False) -> Split:
    """The paper's split (section 6.1): of a user's b_1 .. b_n, b_{k+1} is predicted from b_1 .. b_k.

    Training takes k = 1..n-2 and the test k = n-1; with `tuning`, training takes k = 1..n-3 and validation k = n-2, and
    there is no test. Each positive has one negative, uniform over the items and fixed by `seed`: the same pair in a
    tuning and in a final split. A user with fewer than 2 behaviours (3 with `tuning`) gives no sample.

    Args:
        negatives: "paper" draws outside all of b_1 .. b_n, "strict" outside b_1 .. b_{k+1} alone (no look ahead).
        seed: of the negatives.
        tuning: whether to hold out b_{n-1} for choosing coefficients, learning rate and epoch.

    Raises:
        TypeError: an argument of another type.
        ValueError: an unknown `negatives`, a user who left no item to draw, or no user with the 3 behaviours
            (4 with `tuning`) that a training sample and a held-out one take: nothing could be trained.
    """
    arguments.is_a("interactions", interactions, Interactions)
    if negatives not in ("paper", "strict"):
        raise ValueError(f"negatives must be 'paper' or 'strict', got {negatives!r}")
    seed, tuning = arguments.whole("seed", seed, 0), arguments.flag("tuning", tuning)
    lengths = interactions.lengths()
    needed, most = 4 if tuning else 3, lengths.max(initial=0)
    if most < needed:
        raise ValueError(
            f"the split has no training samples: a {'tuning ' if tuning else ''}split trains on users with at least "
            f"{needed} behaviours, got {interactions.n_users} users with at most {most}"
        )
    rows = np.arange(len(interactions.item_ids))
    user = np.repeat(np.arange(interactions.n_users), lengths)
    position = rows - interactions.user_offsets[user]  # k: behaviours before this one
    drawn = position >= 1
    negative = np.zeros(len(rows), np.int64)
    negative[drawn] = _draw_negatives(interactions, user, position, drawn, negatives, seed)

    def samples(chosen: np.ndarray) -> Samples:
        candidates = np.stack([interactions.item_ids[chosen], negative[chosen]], 1)
        labels = np.tile(np.array([1, 0], np.float32), (len(candidates), 1))
        return Samples(user[chosen], interactions.user_offsets[user[chosen]], position[chosen], candidates, labels)

    held_out = lengths[user] - (2 if tuning else 1)  # position of the item that is evaluated
    train = samples(drawn & (position < held_out))
    evaluation = samples(drawn & (position == held_out))
    return Split(train, validation=evaluation) if tuning else Split(train, test=evaluation)


def split_movielens(
    interactions: Interactions, train_users: int | None = None, seed: int = 0, tuning: bool = False
) -> Split:
    """The paper's split (section 6.1): users are split at random; every rating is a sample and none is sampled.

    The history of a rating is what the user rated before it, whatever the rating; a user's first rating has no history
    and is left out.

    Args:
        train_users: users to train on; by default 100,000 or the same fraction (0.722) of a smaller set.
        seed: of the user permutation.
        tuning: whether to evaluate on a tenth of the training users instead of the test users.

    Raises:
        TypeError: an argument of another type.
        ValueError: behaviours without labels, fewer than 2 users, train_users outside 1 .. U - 1, or a part of the
            split without a user of two ratings, the fewest that give a sample.
    """
    arguments.is_a("interactions", interactions, Interactions)
    seed, tuning = arguments.whole("seed", seed, 0), arguments.flag("tuning", tuning)
    if interactions.labels is None:
        raise ValueError("interactions must carry labels (ratings) to be split by user, got none")
    n_users = interactions.n_users
    if n_users < 2:
        raise ValueError(f"interactions must have at least 2 users, one to train on and one to test, got {n_users}")
    if train_users is None:
        train_users = min(MOVIELENS_TRAIN_USERS, max(1, round(MOVIELENS_TRAIN_FRACTION * n_users)))
    if not 1 <= arguments.whole("train_users", train_users, 0) < n_users:
        raise ValueError(f"train_users must lie in 1..{n_users - 1}, got {train_users}")
    order = np.random.default_rng(seed).permutation(n_users)
    user = np.repeat(np.arange(n_users), interactions.lengths())
    position = np.arange(len(user)) - interactions.user_offsets[user]

    def samples(part: str, users: np.ndarray) -> Samples:
        chosen_user = np.zeros(n_users, bool)
        chosen_user[users] = True
        chosen = np.flatnonzero(chosen_user[user] & (position >= 1))
        if not len(chosen):
            raise ValueError(
                f"the split has no {part} samples: a sample is a rating after another one of the same user, and of the "
                f"{len(users)} {part} users ({train_users} of {n_users} are trained on) none has two ratings"
            )
        return Samples(
            user[chosen],
            interactions.user_offsets[user[chosen]],
            position[chosen],
            interactions.item_ids[chosen, None],
            interactions.labels[chosen, None],
        )

    if tuning:
        held_out = max(1, train_users // 10)
        train, validation = order[held_out:train_users], order[:held_out]
        return Split(samples("training", train), validation=samples("validation", validation))
    return Split(samples("training", order[:train_users]), test=samples("test", order[train_users:]))


def _draw_negatives(interactions, user, position, drawn, negatives, seed) -> np.ndarray:
    """`[drawn.sum()]` items, each uniform over what its sample may take: rejected draws are drawn again."""
    n_items = interactions.n_items
    # First position of each (user, item), by its key: a sample at k must not take an item first met at or before k.
    keys, first = np.unique(user * n_items + interactions.item_ids, return_index=True)
    first = position[first]
    distinct = np.bincount(keys // n_items, minlength=interactions.n_users)
    crowded = np.flatnonzero((distinct >= n_items) & (interactions.lengths() >= 2))
    if len(crowded):
        raise ValueError(
            f"a user must leave an item to draw a negative from, got user {crowded[0]} with all {n_items} items"
        )
    last_taken = position[drawn] if negatives == "strict" else np.iinfo(np.int64).max
    last_taken = np.broadcast_to(last_taken, int(drawn.sum()))
    base = user[drawn] * n_items
    rng = np.random.default_rng(seed)
    items = np.empty(len(base), np.int64)
    open_rows = np.arange(len(base))
    while len(open_rows):
        items[open_rows] = rng.integers(0, n_items, len(open_rows))
        wanted = base[open_rows] + items[open_rows]
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        open_rows = open_rows[(keys[at] == wanted) & (first[at] <= last_taken[open_rows])]
    return items
