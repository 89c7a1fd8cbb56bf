"""How the public arguments of `local_activation` become what its kernels read: tables and ids, begin and length."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch

from din_kernels import checks
from din_kernels.gather import Gather
from din_kernels.jagged import Jagged, Padded

# Asked once, here: torch.compile of torch 2.11 cannot trace the question.
AUTOCAST_DEVICES = frozenset(
    each for each in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia") if torch.amp.is_autocast_available(each)
)


def without_autocast(tensor: torch.Tensor):
    """Context for kernels that compute in dtypes of their own: autocast reaches into an op's implementation, and into a
    backward called under it, where it would lower our own products."""
    device = tensor.device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


class Source(NamedTuple):
    """Rows `[n, D]`: one table and no ids, or the rows that ids name, side by side from several tables."""

    tables: list[torch.Tensor]  # [V_k, D_k] each
    ids: list[torch.Tensor]  # [n] each, or none: then row n is tables[0][n]


def source_of(rows: torch.Tensor | Gather) -> Source:
    """The rows of a tensor `[n, D]` or of a Gather."""
    return Source(rows.tables, rows.ids) if isinstance(rows, Gather) else Source([rows], [])


class Rows(NamedTuple):
    """A history as the op takes it."""

    source: Source  # M rows
    begin: torch.Tensor  # [U]
    length: torch.Tensor  # [U]
    row_index: torch.Tensor | None  # [capacity], for an arbitrary mask: each user's valid rows first
    row_mask: torch.Tensor | None  # [M] bool: rows that count for more than Dice's statistics
    width: int | None  # T of a padded history


def rows_of(history: Jagged | Padded | Gather, padded_statistics: bool = False) -> Rows:
    """The history's rows; with `padded_statistics` padding is there too, for Dice's statistics alone."""
    if isinstance(history, Gather):
        return Rows(source_of(history), history.offsets[:-1].contiguous(), history.lengths(), None, None, None)
    if isinstance(history, Jagged):
        begin = history.offsets[:-1].contiguous()
        return Rows(source_of(history.values), begin, history.lengths(), None, None, None)
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


def pair_layout(layout: Rows, query_to_user, queries: int, rows: int, total_pairs: int | None):
    """Where the weights of each candidate start, and how many there are in all."""
    if layout.width is not None:
        user = slice(None) if query_to_user is None else query_to_user
        left = layout.begin[user] % layout.width if layout.width else layout.begin[user]
        return torch.arange(queries, device=left.device) * layout.width + left, queries * layout.width
    if query_to_user is None:
        return layout.begin, rows
    per_query = layout.length[query_to_user]
    end = per_query.cumsum(0)
    if total_pairs is None:
        total_pairs = int(end[-1]) if queries else 0
    return end - per_query, total_pairs


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
    device = query.device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return query, history
    stored = next((each.dtype for each in (query, history) if isinstance(each, Gather)), None)
    dtype = stored or torch.get_autocast_dtype(device)

    def lowered(rows: torch.Tensor) -> torch.Tensor:
        return rows.to(dtype) if rows.is_floating_point() and rows.dtype != torch.float64 else rows

    if isinstance(query, torch.Tensor):
        query = lowered(query)
    if isinstance(history, Jagged):
        history = Jagged._trusted(lowered(history.values), history.offsets)
    elif isinstance(history, Padded):
        history = Padded._trusted(lowered(history.values), history.lengths, history.mask, history.padding_side)
    return query, history


def check_rows(query, history, query_to_user) -> None:
    """Raises unless query and history fit each other."""
    if isinstance(query, Gather):
        if query.offsets is not None:
            raise ValueError("query must be a Gather without offsets, got one with offsets")
        dim = query.width
    else:
        checks.is_tensor("query", query, 2, "[Q, D]")
        checks.is_floating("query", query)
        dim = query.shape[1]
    if not isinstance(history, (Jagged, Padded, Gather)):
        raise TypeError(f"history must be a din_kernels.Jagged, Padded or Gather, got {type(history).__name__}")
    if isinstance(history, Gather):
        if history.offsets is None:
            raise ValueError("history must be a Gather with offsets, got one without")
        values, users = history, history.batch_size
        if history.width != dim:
            raise ValueError(f"history must have tables of width {dim} together (D of query), got {history.width}")
    else:
        values, trailing = history.values, 1 if isinstance(history, Jagged) else 2
        users = history.batch_size
        if values.dim() != trailing + 1 or values.shape[-1] != dim:
            expected = f"[N, {dim}]" if trailing == 1 else f"[B, T, {dim}]"
            raise ValueError(f"history must have shape {expected} (D of query), got {list(values.shape)}")
    checks.same_dtype("history", values, "query", query)
    checks.same_device("history", values, "query", query)
    queries = query.num_rows if isinstance(query, Gather) else query.shape[0]
    if query_to_user is None:
        if queries != users:
            raise ValueError(
                f"query must have one row per history ({users}) unless query_to_user is given, got {queries}"
            )
        return
    checks.is_tensor("query_to_user", query_to_user, 1, "[Q]")
    checks.is_index("query_to_user", query_to_user)
    checks.has_shape("query_to_user", query_to_user, (queries,), " (one per query)")
    checks.same_device("query_to_user", query_to_user, "query", query)
    checks.ids_within("query_to_user", query_to_user, users, f"{users} histories")
