"""Packed batches: histories one after the other with offsets, never padded, and no Python loop per sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.utils import _pytree as pytree

from din_kernels import checks
from din_kernels.data import arguments
from din_kernels.data.interactions import Interactions, Samples, window_rows
from din_kernels.jagged import Jagged


@dataclass(frozen=True, eq=False)
class Batch:
    """U histories with N behaviours together, and Q candidates; row u of the batch is one row of `Samples`.

    Args:
        users: `[U]` int64, dense user ids.
        history_items: `[N]` int64.
        history_categories: `[N]` int64, or `Jagged` ([c] int64 over N behaviours) where items have several categories.
        offsets: `[U + 1]` int64, row u owns behaviours `offsets[u] : offsets[u + 1]`.
        candidate_items: `[Q]` int64.
        candidate_categories: `[Q]` int64 or `Jagged`, as `history_categories`.
        query_to_user: `[Q]` int64, the row of each candidate: 0, 0, 1, 1, ... with a positive and its negative per row.
        labels: `[Q]` float32.
        sample_user: `[Q]` int64, the dense user id of each candidate, for the user AUC.

    Raises:
        TypeError, ValueError: a field that is no plain tensor `[n]` (or Jagged) of its dtype, by its name.
    """

    users: torch.Tensor
    history_items: torch.Tensor
    history_categories: torch.Tensor | Jagged
    offsets: torch.Tensor
    candidate_items: torch.Tensor
    candidate_categories: torch.Tensor | Jagged
    query_to_user: torch.Tensor
    labels: torch.Tensor
    sample_user: torch.Tensor

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Jagged) and field.name.endswith("_categories"):
                value = value.values
            checks.is_tensor(field.name, value, 1, "[n]")
            (checks.is_floating if field.name == "labels" else checks.is_index)(field.name, value)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Batch:
        """The same batch on `device`.

        Args:
            device: where all tensors go.
            non_blocking: as in `torch.Tensor.to`: a copy from pinned memory to a GPU returns at once, and work queued
                on the same stream sees it finished.

        Example:
            >>> from din_kernels.data import generate
            >>> generated = generate(seed=0, users=10)
            >>> batch = next(iter(batches(generated.split.train, generated.interactions, 8)))
            >>> batch.to("meta").history_items.device.type
            'meta'
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for copies to a GPU that do not wait; `DataLoader` calls it too.

        Raises:
            RuntimeError: torch finds no accelerator to pin memory for.
        """
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change) -> Batch:
        # A Jagged is a pytree of its values and offsets, so both are changed alike.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: pytree.tree_map_only(torch.Tensor, change, value) for name, value in values.items()})


class Batches:
    """Iterates over `Batch`es; `len()` is their number. Made by `batches`."""

    def __init__(self, samples, interactions, batch_size, shuffle, seed, epoch, max_length):
        self._samples, self._interactions = samples, interactions
        self._batch_size, self._max_length = batch_size, max_length
        self._shuffle, self._seed, self._epoch = shuffle, seed, epoch

    def __len__(self) -> int:
        return (len(self._samples) + self._batch_size - 1) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(len(self._samples))
        if self._shuffle:
            order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._samples))
        for begin in range(0, len(order), self._batch_size):
            rows = order[begin : begin + self._batch_size]
            yield _collate(self._samples.take(rows), self._interactions, self._max_length)


def batches(
    samples: Samples,
    interactions: Interactions,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    max_length: int | None = 100,
) -> Batches:
    """Batches of `batch_size` rows of `samples`, the last one smaller, in an order fixed by `(seed, epoch)`.

    Args:
        samples: rows to batch; a positive and its negative stay in one batch and share one history.
        interactions: where the samples' windows point.
        batch_size: rows (histories) in a batch; a batch holds `batch_size * C` candidates.
        shuffle: a new permutation per `(seed, epoch)`; else the rows' own order.
        max_length: a longer history keeps its `max_length` most recent behaviours; None keeps all.

    Raises:
        TypeError: an argument of another type.
        ValueError: batch_size below 1, max_length, seed or epoch below 0, or samples that do not lie within
            `interactions`.

    Example:
        >>> from din_kernels.data import generate
        >>> generated = generate(seed=0, users=100)
        >>> batch = next(iter(batches(generated.split.train, generated.interactions, 32, shuffle=True)))
        >>> batch.query_to_user[:4].tolist()
        [0, 0, 1, 1]
    """
    arguments.is_a("samples", samples, Samples)
    samples.check_within(interactions)
    return Batches(
        samples,
        interactions,
        batch_size=arguments.whole("batch_size", batch_size, 1),
        shuffle=arguments.flag("shuffle", shuffle),
        seed=arguments.whole("seed", seed, 0),
        epoch=arguments.whole("epoch", epoch, 0),
        max_length=arguments.longest(max_length),
    )


def _collate(samples: Samples, interactions: Interactions, max_length: int | None) -> Batch:
    rows, offsets = window_rows(*samples.recent(max_length))
    history = interactions.item_ids[rows]
    candidates = samples.candidates.reshape(-1)
    per_row = samples.candidates.shape[1]
    return Batch(
        users=torch.from_numpy(samples.user),
        history_items=torch.from_numpy(history),
        history_categories=_categories(interactions, history),
        offsets=torch.from_numpy(offsets),
        candidate_items=torch.from_numpy(candidates),
        candidate_categories=_categories(interactions, candidates),
        query_to_user=torch.arange(len(samples)).repeat_interleave(per_row),
        labels=torch.from_numpy(samples.labels.reshape(-1)),
        sample_user=torch.from_numpy(np.repeat(samples.user, per_row)),
    )


def _categories(interactions: Interactions, items: np.ndarray) -> torch.Tensor | Jagged:
    values, offsets = interactions.categories_of(items)
    if offsets is None:
        return torch.from_numpy(values)
    return Jagged(torch.from_numpy(values), torch.from_numpy(offsets))
