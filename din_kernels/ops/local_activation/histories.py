"""How the public arguments of `local_activation` become what its kernels read: tables and ids, begin and length."""

from __future__ import annotations

from typing import NamedTuple

import torch

from din_kernels import checks
from din_kernels.gather import Gather
from din_kernels.jagged import Jagged, Padded
from din_kernels.ops.autocast import autocast_dtype


class Source(NamedTuple):
    """Rows `[n, D]`: one table and no ids, or the rows that ids name, side by side from several tables."""

    tables: list[torch.Tensor]  # [V_k, D_k] each
    ids: list[torch.Tensor]  # [n] each, or none: then row n is tables[0][n]
    padding: list[int]  # per table of ids the row without gradient, -1: none

    @property
    def count(self) -> int:
        """n."""
        return (self.ids or self.tables)[0].shape[0]


def source_of(rows: torch.Tensor | Gather) -> Source:
    """The rows of a tensor `[n, D]` or of a Gather."""
    if not isinstance(rows, Gather):
        return Source([rows], [], [])
    return Source(rows.tables, rows.ids, [-1 if each is None else each for each in rows.padding_idx])


class Rows(NamedTuple):
    """A history as the op takes it."""

    source: Source  # M rows
    begin: torch.Tensor  # [U]
    length: torch.Tensor  # [U]
    row_index: torch.Tensor | None = None  # [capacity], for an arbitrary mask: each user's valid rows first
    row_mask: torch.Tensor | None = None  # [M] bool: rows that count for more than Dice's statistics
    width: int | None = None  # T of a padded history


def rows_of(history: Jagged | Padded | Gather, padded_statistics: bool = False) -> Rows:
    """The history's rows; with `padded_statistics` padding is there too, for Dice's statistics alone."""
    if not isinstance(history, Padded):
        begin = history.offsets[:-1].contiguous()
        length = history.offsets[1:] - begin
        return Rows(source_of(history if isinstance(history, Gather) else history.values), begin, length)
    batch, width = history.values.shape[:2]
    source = source_of(history.values.reshape(batch * width, *history.values.shape[2:]))
    begin = torch.arange(batch, device=history.values.device) * width
    if padded_statistics:
        return Rows(source, begin, torch.full_like(begin, width), None, history.valid().reshape(-1).contiguous(), width)
    if history.mask is not None:
        order = torch.argsort(history.mask.logical_not().to(torch.uint8), dim=1, stable=True)
        return Rows(source, begin, history.mask.sum(1), (begin.unsqueeze(1) + order).flatten(), None, width)
    if history.lengths is None:
        return Rows(source, begin, torch.full_like(begin, width), None, None, width)
    length = history.lengths.to(torch.int64).contiguous()
    return Rows(source, begin if history.padding_side == "right" else begin + width - length, length, None, None, width)


def check_statistics(stats: str, history: Jagged | Padded | Gather) -> None:
    """ValueError where statistics over padding are asked of a history without any."""
    if stats == "padded" and not isinstance(history, Padded):
        raise ValueError(f"stats='padded' needs a padded history, got a {type(history).__name__}")


class Pairs(NamedTuple):
    """Where the weights of (candidate, behaviour) pairs are written."""

    begin: torch.Tensor  # [Q], where those of each candidate start
    total: int  # how many there are in all


def pair_layout(layout: Rows, query_to_user, queries: int, total_pairs: int | None) -> Pairs:
    """The history's own layout, candidate by candidate."""
    if layout.width is not None:
        user = slice(None) if query_to_user is None else query_to_user
        left = layout.begin[user] % layout.width if layout.width else layout.begin[user]
        return Pairs(torch.arange(queries, device=left.device) * layout.width + left, queries * layout.width)
    if query_to_user is None:
        return Pairs(layout.begin, layout.source.count)
    per_query = layout.length[query_to_user]
    end = per_query.cumsum(0)
    if total_pairs is None:
        if end.device.type == "meta":
            raise ValueError("total_pairs must be given where lengths have no values (on the meta device), got None")
        total_pairs = int(end[-1]) if queries else 0
    else:
        if checks.values_readable(end) and (pairs := int(end[-1]) if queries else 0) != total_pairs:
            raise ValueError(f"total_pairs must be the number of pairs ({pairs}), got {total_pairs}")
    return Pairs(end - per_query, total_pairs)


def weights_in_layout(pair_weights, history, layout: Rows, pair_begin, query_to_user, queries: int):
    """Weights in the history's own layout: Jagged, or [B or Q, T] with zeros on padding."""
    if layout.width is not None:
        weights = pair_weights.view(queries, layout.width)
        if layout.row_index is not None:
            column = layout.row_index.view(len(layout.begin), layout.width) - layout.begin.unsqueeze(1)
            column = column if query_to_user is None else column[query_to_user]
            weights = torch.zeros_like(weights).scatter(1, column, weights)
        return weights
    if query_to_user is None:
        return Jagged._trusted(pair_weights, history.offsets)
    end = pair_begin + layout.length[query_to_user]
    return Jagged._trusted(pair_weights, torch.cat([end.new_zeros(1), end]))


def in_autocast_dtype(query, history):
    """Under autocast, dense rows in its dtype, as a matrix product would take them; tables of a Gather stay as stored.

    Weights are left alone, since kernels compute in fp32; float64 is never lowered.
    """
    if not isinstance(query, (torch.Tensor, Gather)):
        return query, history  # check_rows says so
    lower = autocast_dtype(query.device.type)
    if lower is None:
        return query, history
    stored = next((each.dtype for each in (query, history) if isinstance(each, Gather)), None)
    dtype = stored or lower

    def lowered(rows: torch.Tensor) -> torch.Tensor:
        return rows.to(dtype) if rows.is_floating_point() and rows.dtype != torch.float64 else rows

    if isinstance(query, torch.Tensor):
        query = lowered(query)
    if isinstance(history, Jagged):
        history = Jagged._trusted(lowered(history.values), history.offsets)
    elif isinstance(history, Padded):
        history = Padded._trusted(lowered(history.values), history.lengths, history.mask, history.padding_side)
    return query, history
