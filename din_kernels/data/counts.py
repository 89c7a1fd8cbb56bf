"""How often an id occurs in training (n_j of the mini-batch aware penalty), and which candidates training never saw."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from din_kernels.data import arguments
from din_kernels.data.interactions import Interactions, Samples, window_rows

# Behaviours expanded at once: 4M rows are 32 MB per int64 temporary.
_CHUNK = 4_000_000


def item_counts(
    samples: Samples, interactions: Interactions, max_length: int | None = 100, count: str = "samples"
) -> np.ndarray:
    """`[V]` int64, n_j of every item over history and candidate, which share the item table.

    Args:
        max_length: as in `batches`; behaviours that are cut off are not counted.
        count: "samples" counts the (history, candidate) pairs in which an item appears at least once, the paper's
            I(x_j != 0); "occurrences" counts every appearance. A positive and its negative are two such pairs.

    Raises:
        TypeError: samples or interactions of another type.
        ValueError: samples that do not lie within `interactions`, or an unknown `count`.

    Example:
        >>> interactions = Interactions(user_offsets=[0, 2], item_ids=[0, 0], category_ids=[0, 0, 0], n_categories=1)
        >>> samples = Samples([0], [0], [2], [[0, 2]], [[1, 0]])
        >>> item_counts(samples, interactions).tolist()
        [2, 0, 1]
        >>> item_counts(samples, interactions, count="occurrences").tolist()
        [5, 0, 1]
    """
    begin, length = _windows(samples, interactions, max_length)
    per_row = samples.candidates.shape[1]
    candidates = samples.candidates.ravel()
    one_each = np.arange(len(candidates) + 1)
    return _count(
        interactions.item_ids, begin, begin + length, candidates, one_each, per_row, interactions.n_items, count
    )


def category_counts(
    samples: Samples, interactions: Interactions, max_length: int | None = 100, count: str = "samples"
) -> np.ndarray:
    """`[K]` int64, n_j of every category; arguments as `item_counts`."""
    begin, length = _windows(samples, interactions, max_length)
    per_row = samples.candidates.shape[1]
    behaviours, behaviour_offsets = interactions.categories_of(interactions.item_ids)
    candidates, candidate_offsets = interactions.categories_of(samples.candidates.ravel())
    end = begin + length
    if behaviour_offsets is not None:
        begin, end = behaviour_offsets[begin], behaviour_offsets[end]
    else:
        candidate_offsets = np.arange(len(candidates) + 1)
    return _count(behaviours, begin, end, candidates, candidate_offsets, per_row, interactions.n_categories, count)


def seen_in_training(samples: Samples, train: Samples, interactions: Interactions) -> np.ndarray:
    """`[S]` bool: every candidate of the row occurs in training as a behaviour or as a positive.

    Negatives do not count: they are drawn from all items, so that nearly every item was one.

    Raises:
        TypeError: samples, train or interactions of another type.
        ValueError: samples or train do not lie within `interactions`.
    """
    _windows(samples, interactions, None)
    _windows(train, interactions, None, "train")
    at_end = np.bincount(train.history_begin, minlength=len(interactions.item_ids) + 1)
    at_end -= np.bincount(train.history_begin + train.history_length, minlength=len(at_end))
    seen = np.zeros(interactions.n_items, bool)
    seen[interactions.item_ids[np.cumsum(at_end)[:-1] > 0]] = True
    seen[train.candidates[train.labels > 0]] = True
    return seen[samples.candidates].all(1)


def _windows(samples: Samples, interactions: Interactions, max_length: int | None, name: str = "samples"):
    """`(begin [S], length [S])` of the windows, once it is certain that they lie within `interactions`."""
    arguments.is_a(name, samples, Samples)
    samples.check_within(interactions)
    return samples.recent(max_length)


def _count(ids, begin, end, candidates, candidate_offsets, per_row, size, count) -> np.ndarray:
    """Counts of `size` ids over windows `[begin, end)` of `ids` and over ragged `candidates`, `per_row` to a window."""
    if count not in ("samples", "occurrences"):
        raise ValueError(f"count must be 'samples' or 'occurrences', got {count!r}")
    if count == "occurrences":
        change = np.bincount(begin, minlength=len(ids) + 1) - np.bincount(end, minlength=len(ids) + 1)
        total = per_row * np.bincount(ids, np.cumsum(change)[:-1], size)
        return total.astype(np.int64) + np.bincount(candidates, minlength=size)

    # A behaviour is the first of its id in a window when the id's previous place lies before the window.
    by_id = np.argsort(ids, kind="stable")
    previous = np.full(len(ids), -1, np.int64)
    same = ids[by_id[1:]] == ids[by_id[:-1]]
    previous[by_id[1:][same]] = by_id[:-1][same]
    total = np.zeros(size, np.int64)
    per_chunk = np.concatenate([[0], np.cumsum(end - begin)]) // _CHUNK
    edges = np.concatenate([[0], np.flatnonzero(np.diff(per_chunk[:-1])) + 1, [len(begin)]])
    for low, high in pairwise(edges):
        rows, offsets = window_rows(begin[low:high], end[low:high] - begin[low:high])
        first = previous[rows] < np.repeat(begin[low:high], np.diff(offsets))
        total += per_row * np.bincount(ids[rows[first]], minlength=size)

    # A candidate counts where its own window does not hold it: its last place before the window's end lies before the
    # window. Places are sorted by (id, place), one number each.
    pair = np.repeat(np.arange(len(candidate_offsets) - 1), np.diff(candidate_offsets))
    keys = ids[by_id] * (len(ids) + 1) + by_id
    wanted = candidates * (len(ids) + 1)
    row = pair // per_row
    last = np.searchsorted(keys, wanted + end[row]) - 1
    held = np.zeros(len(candidates), bool)
    held[last >= 0] = keys[last[last >= 0]] >= (wanted + begin[row])[last >= 0]
    fresh = np.unique(pair[~held] * size + candidates[~held]) % size
    return total + np.bincount(fresh, minlength=size)
