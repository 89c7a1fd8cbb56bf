"""What users did, in time order, and samples that are windows into it. Plain numpy; batches turn them into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Interactions:
    """Behaviours of all users, oldest first, with dense ids 0..V-1 for items and 0..K-1 for categories.

    Args:
        user_offsets: `[U + 1]` int64; user u owns `item_ids[user_offsets[u] : user_offsets[u + 1]]`.
        item_ids: `[N]` int64.
        category_ids: `[V]` int64 when every item has one category (`category_offsets` is None), else `[C]`.
        n_categories: K, the size of the category vocabulary.
        category_offsets: `[V + 1]` int64 or None; item v has
            `category_ids[category_offsets[v] : category_offsets[v + 1]]`.
        labels: `[N]` float32 or None; 1 for a positive behaviour, 0 for a negative one (MovieLens).
        user_names, item_names, category_names: what a dense id was called in the files, or None.

    Raises:
        ValueError: offsets that do not fit the arrays, or an id out of range.
    """

    user_offsets: np.ndarray
    item_ids: np.ndarray
    category_ids: np.ndarray
    n_categories: int
    category_offsets: np.ndarray | None = None
    labels: np.ndarray | None = None
    user_names: Sequence | None = None
    item_names: Sequence | None = None
    category_names: Sequence | None = None

    def __post_init__(self):
        _check_offsets("user_offsets", self.user_offsets, len(self.item_ids))
        if self.category_offsets is not None:
            _check_offsets("category_offsets", self.category_offsets, len(self.category_ids))
        _check_range("item_ids", self.item_ids, self.n_items)
        _check_range("category_ids", self.category_ids, self.n_categories)
        if self.labels is not None and len(self.labels) != len(self.item_ids):
            raise ValueError(f"labels must have one entry per behaviour ({len(self.item_ids)}), got {len(self.labels)}")

    @property
    def n_users(self) -> int:
        """Users, with and without behaviours."""
        return len(self.user_offsets) - 1

    @property
    def n_items(self) -> int:
        """Items that have a category, whoever has seen them."""
        return len(self.category_ids if self.category_offsets is None else self.category_offsets[1:])

    @property
    def one_category(self) -> bool:
        """Whether every item has exactly one category, so that `category_ids[item]` is it."""
        return self.category_offsets is None

    def items_of(self, user: int) -> np.ndarray:
        """`[n]` int64, what `user` (a dense id) did, oldest first."""
        return self.item_ids[self.user_offsets[user] : self.user_offsets[user + 1]]

    def lengths(self) -> np.ndarray:
        """`[U]` int64, behaviours of each user."""
        return np.diff(self.user_offsets)

    def categories_of(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Categories of `items [n]`: `([n], None)` where each item has one, else `(values [c], offsets [n + 1])`."""
        if self.category_offsets is None:
            return self.category_ids[items], None
        begin = self.category_offsets[items]
        rows, offsets = window_rows(begin, self.category_offsets[items + 1] - begin)
        return self.category_ids[rows], offsets


@dataclass(frozen=True, eq=False)
class Samples:
    """Candidates to score, each row with a history that is a window of `Interactions.item_ids`: nothing is copied.

    Args:
        user: `[S]` int64, the dense user id.
        history_begin: `[S]` int64, where the window starts in `item_ids`.
        history_length: `[S]` int64.
        candidates: `[S, C]` int64 items that share the row's history: C = 2 (positive, negative) on Amazon, 1 on
            MovieLens.
        labels: `[S, C]` float32, 1 or 0.
    """

    user: np.ndarray
    history_begin: np.ndarray
    history_length: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Samples:
        """The rows picked by an index or boolean mask `[S]`."""
        return Samples(
            self.user[rows],
            self.history_begin[rows],
            self.history_length[rows],
            self.candidates[rows],
            self.labels[rows],
        )

    def recent(self, max_length: int | None) -> tuple[np.ndarray, np.ndarray]:
        """`(begin [S], length [S])` of the windows cut to their `max_length` most recent behaviours."""
        if max_length is None:
            return self.history_begin, self.history_length
        length = np.minimum(self.history_length, max_length)
        return self.history_begin + self.history_length - length, length


@dataclass(frozen=True, eq=False)
class Split:
    """`train` with `test`; a tuning split has `validation` instead, so that the test cannot be read by mistake."""

    train: Samples
    test: Samples | None = None
    validation: Samples | None = None


def window_rows(begin: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the windows `begin [n]`, `length [n]` one after the other: `(rows [sum], offsets [n + 1])`."""
    offsets = np.zeros(len(length) + 1, np.int64)
    np.cumsum(length, out=offsets[1:])
    rows = np.repeat(begin - offsets[:-1], length)
    rows += np.arange(len(rows), dtype=np.int64)
    return rows, offsets


def _check_offsets(name: str, offsets: np.ndarray, rows: int) -> None:
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name} must rise from 0 to {rows}, got {np.array2string(offsets, threshold=6)}")


def _check_range(name: str, ids: np.ndarray, size: int) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(f"{name} must lie in 0..{size - 1}, got {ids.min()}..{ids.max()}")
