"""What users did, in time order, and samples that are windows into it. Plain numpy; batches turn them into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from din_kernels.data import arguments


@dataclass(frozen=True, eq=False)
class Interactions:
    """Behaviours of all users, oldest first, with dense ids 0..V-1 for items and 0..K-1 for categories.

    Arrays of any integer dtype are taken and kept as int64, labels of any real dtype as float32.

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
        TypeError: ids or offsets that are not of an integer dtype.
        ValueError: offsets that do not fit the arrays, an id out of range, a label outside 0..1, or names of which
            there are more or fewer than ids.

    Example:
        >>> interactions = Interactions(user_offsets=[0, 2, 3], item_ids=[0, 1, 1], category_ids=[0, 0], n_categories=1)
        >>> interactions.items_of(0).tolist()
        [0, 1]
    """

    user_offsets: np.ndarray
    item_ids: np.ndarray
    category_ids: np.ndarray
    n_categories: int
    category_offsets: np.ndarray | None = None
    labels: np.ndarray | None = None
    user_names: Sequence | np.ndarray | None = None
    item_names: Sequence | np.ndarray | None = None
    category_names: Sequence | np.ndarray | None = None

    def __post_init__(self):
        arrays = {
            "user_offsets": arguments.ids("user_offsets", self.user_offsets, "[U + 1]"),
            "item_ids": arguments.ids("item_ids", self.item_ids, "[N]"),
            "category_ids": arguments.ids("category_ids", self.category_ids, "[V]"),
            "n_categories": arguments.whole("n_categories", self.n_categories, 0),
        }
        if self.category_offsets is not None:
            arrays["category_offsets"] = arguments.ids("category_offsets", self.category_offsets, "[V + 1]")
        if self.labels is not None:
            arrays["labels"] = arguments.labels("labels", self.labels, "[N]")
        for name, value in arrays.items():
            object.__setattr__(self, name, value)
        _check_offsets("user_offsets", self.user_offsets, len(self.item_ids))
        if self.category_offsets is not None:
            _check_offsets("category_offsets", self.category_offsets, len(self.category_ids))
        arguments.within("item_ids", self.item_ids, self.n_items)
        arguments.within("category_ids", self.category_ids, self.n_categories)
        if self.labels is not None and len(self.labels) != len(self.item_ids):
            raise ValueError(f"labels must have one entry per behaviour ({len(self.item_ids)}), got {len(self.labels)}")
        sizes = {"user_names": self.n_users, "item_names": self.n_items, "category_names": self.n_categories}
        for name, size in sizes.items():
            names = getattr(self, name)
            if names is not None and len(names) != size:
                raise ValueError(f"{name} must have one entry per id ({size}), got {len(names)}")

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
        """`[n]` int64, what `user` (a dense id) did, oldest first; IndexError where there is no such user."""
        if not 0 <= arguments.whole("user", user, 0) < self.n_users:
            raise IndexError(f"user must lie in 0..{self.n_users - 1}, got {user}")
        return self.item_ids[self.user_offsets[user] : self.user_offsets[user + 1]]

    def lengths(self) -> np.ndarray:
        """`[U]` int64, behaviours of each user."""
        return np.diff(self.user_offsets)

    def categories_of(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Categories of `items [n]`: `([n], None)` where each item has one, else `(values [c], offsets [n + 1])`.

        Raises:
            TypeError: items that are not of an integer dtype.
            IndexError: an item out of range.
        """
        items = arguments.ids("items", items, "[n]")
        arguments.within("items", items, self.n_items, IndexError)
        if self.category_offsets is None:
            return self.category_ids[items], None
        begin = self.category_offsets[items]
        rows, offsets = window_rows(begin, self.category_offsets[items + 1] - begin)
        return self.category_ids[rows], offsets


_ROW_FIELDS = ("user", "history_begin", "history_length")


@dataclass(frozen=True, eq=False)
class Samples:
    """Candidates to score, each row with a history that is a window of `Interactions.item_ids`: nothing is copied.

    Arrays of any integer dtype are taken and kept as int64, labels of any real dtype as float32.

    Args:
        user: `[S]` int64, the dense user id.
        history_begin: `[S]` int64, where the window starts in `item_ids`.
        history_length: `[S]` int64.
        candidates: `[S, C]` int64 items that share the row's history: C = 2 (positive, negative) on Amazon, 1 on
            MovieLens.
        labels: `[S, C]` float32, 1 or 0.

    Raises:
        TypeError: ids that are not of an integer dtype.
        ValueError: arrays of different lengths, a negative id, begin or length, or a label outside 0..1.
    """

    user: np.ndarray
    history_begin: np.ndarray
    history_length: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        arrays = {name: arguments.ids(name, getattr(self, name), "[S]") for name in _ROW_FIELDS}
        arrays["candidates"] = arguments.ids("candidates", self.candidates, "[S, C]")
        arrays["labels"] = arguments.labels("labels", self.labels, "[S, C]")
        for name, value in arrays.items():
            object.__setattr__(self, name, value)
            if len(value) != len(self.user):
                raise ValueError(f"{name} must have one row per sample ({len(self.user)}), got {len(value)}")
            if name != "labels" and value.size and value.min() < 0:
                raise ValueError(f"{name} must not be negative, got {value.min()}")
        if self.labels.shape != self.candidates.shape:
            expected, got = list(self.candidates.shape), list(self.labels.shape)
            raise ValueError(f"labels must have the shape of candidates {expected}, got {got}")

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
        """`(begin [S], length [S])` of the windows cut to their `max_length` most recent behaviours; None cuts nothing.

        Raises:
            TypeError, ValueError: max_length is neither None nor a whole number from 0.
        """
        max_length = arguments.longest(max_length)
        if max_length is None:
            return self.history_begin, self.history_length
        length = np.minimum(self.history_length, max_length)
        return self.history_begin + self.history_length - length, length

    def check_within(self, interactions: Interactions) -> None:
        """Raises unless users, windows and candidates exist in `interactions`.

        Raises:
            TypeError: no `Interactions`.
            ValueError: a user, a window or a candidate out of range.
        """
        arguments.is_a("interactions", interactions, Interactions)
        arguments.within("user", self.user, interactions.n_users)
        arguments.within("candidates", self.candidates, interactions.n_items)
        rows = len(interactions.item_ids)
        outside = self.history_begin > rows - self.history_length  # a sum of the two could pass 2**63
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            raise ValueError(
                f"history_begin and history_length must lie within the {rows} behaviours, "
                f"got {self.history_begin[at]} and {self.history_length[at]} in row {at}"
            )


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
