"""`Gather`: rows of embedding tables by id, fetched inside a kernel instead of being copied out first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import embedding
from torch.utils import _pytree as pytree

from din_kernels import checks
from din_kernels.hooks import changed
from din_kernels.inference import savable
from din_kernels.jagged import check_offsets, non_blocking, register_batch_type

MAX_TABLES = 8


class Gather:
    """Rows given as ids: row n is `[tables[0][ids[0][n]], tables[1][ids[1][n]], ...]`, of width D = D_0 + D_1 + ...

    In `local_activation` and `nn.LocalActivationUnit` it stands for a history (with offsets) or a query (without).

    Args:
        ids: `[N]` int64 or int32, or one such tensor per table.
        tables: `[V, D]`, or a list of tables `[V_k, D_k]` of one dtype, at most 8. A table may be an `nn.Embedding`,
            which brings its padding_idx and sparse; one with max_norm, scale_grad_by_freq, hooks or a class of its own
            is refused.
        offsets: `[U + 1]`, as in `Jagged`; None for candidates.
        sparse: whether gradients of the tables are sparse, as with `nn.Embedding(sparse=True)`: one entry per row n, so
            that every id of the batch is in them, even where its gradient is 0. Else dense `[V_k, D_k]`. None: as the
            given `nn.Embedding`s are, True where there is none.
        padding_idx: a row of every table that gets no gradient, as in `nn.Embedding(padding_idx)`; or a list with a row
            or None per table. A sparse gradient has no entry of it. None: those of the given `nn.Embedding`s.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device; as many ids as tables are needed.
        IndexError: an id or a padding_idx outside its table.

    Example:
        >>> items, categories = torch.randn(10, 6), torch.randn(3, 2)
        >>> ids = [torch.tensor([7, 7, 1]), torch.tensor([2, 2, 0])]
        >>> history = Gather(ids, [items, categories], offsets=torch.tensor([0, 3]))
        >>> history.rows().shape
        torch.Size([3, 8])
    """

    __slots__ = ("ids", "offsets", "padding_idx", "sparse", "tables")

    def __init__(
        self,
        ids: torch.Tensor | Sequence[torch.Tensor],
        tables: torch.Tensor | nn.Embedding | Sequence[torch.Tensor | nn.Embedding],
        offsets: torch.Tensor | None = None,
        sparse: bool | None = None,
        padding_idx: int | Sequence[int | None] | None = None,
    ):
        self.ids = [ids] if isinstance(ids, torch.Tensor) else checks.listed("ids", ids)
        given = [tables] if isinstance(tables, (torch.Tensor, nn.Module)) else checks.listed("tables", tables)
        for k, each in enumerate(given):
            _check_embedding(f"tables[{k}]", each)
        self.tables = [each.weight if isinstance(each, nn.Embedding) else each for each in given]
        self.sparse = _sparse(sparse, given)
        if not 1 <= len(self.tables) <= MAX_TABLES or len(self.ids) != len(self.tables):
            raise ValueError(
                f"ids must hold one tensor per table, for 1 to {MAX_TABLES} tables, got {len(self.ids)} for "
                f"{len(self.tables)} tables"
            )
        for k, (each, table) in enumerate(zip(self.ids, self.tables, strict=True)):
            checks.is_tensor(f"tables[{k}]", table, 2, "[V, D]")
            checks.is_floating(f"tables[{k}]", table)
            checks.same_dtype(f"tables[{k}]", table, "tables[0]", self.tables[0])
            checks.is_tensor(f"ids[{k}]", each, 1, "[N]")
            checks.is_index(f"ids[{k}]", each)
            checks.has_shape(f"ids[{k}]", each, self.ids[0].shape, " (as ids[0])")
            for name, tensor in ((f"tables[{k}]", table), (f"ids[{k}]", each)):
                checks.same_device(name, tensor, "tables[0]", self.tables[0])
            checks.ids_within(f"ids[{k}]", each, table.shape[0])
        self.padding_idx = self._padding(padding_idx, given)
        self.offsets = None
        if offsets is not None:
            check_offsets(offsets, self.num_rows, "ids", self.ids[0])
            self.offsets = offsets.to(torch.int64)

    def _padding(self, padding_idx, given) -> list[int | None]:
        if padding_idx is None:
            return [each.padding_idx if isinstance(each, nn.Embedding) else None for each in given]
        each_own = isinstance(padding_idx, Sequence) and not isinstance(padding_idx, str)
        if each_own and len(padding_idx) != len(given):
            raise ValueError(f"padding_idx must have one entry per table ({len(given)}), got {len(padding_idx)}")
        rows = list(padding_idx) if each_own else [padding_idx] * len(given)
        for k, (row, table) in enumerate(zip(rows, self.tables, strict=True)):
            name = f"padding_idx[{k}]" if each_own else "padding_idx"
            checks.row_of(name, row, table.shape[0], f"rows of tables[{k}]")
        return rows

    @classmethod
    def _trusted(cls, ids, tables, offsets, sparse, padding_idx) -> Gather:
        made = object.__new__(cls)
        made.ids, made.tables, made.offsets, made.sparse = ids, tables, offsets, sparse
        made.padding_idx = list(padding_idx)
        return made

    def __reduce__(self):
        return Gather, (self.ids, self.tables, self.offsets, self.sparse, self.padding_idx)

    def to(self, *args, **kwargs) -> Gather:
        """As `torch.Tensor.to`: a dtype applies to the tables alone, a device to all."""
        tables = [table.to(*args, **kwargs) for table in self.tables]
        move = {"device": tables[0].device, "non_blocking": non_blocking(args, kwargs)}
        offsets = None if self.offsets is None else self.offsets.to(**move)
        return Gather._trusted([each.to(**move) for each in self.ids], tables, offsets, self.sparse, self.padding_idx)

    def pin_memory(self) -> Gather:
        """Ids and offsets in pinned memory, for copies that do not wait; the tables stay where they are."""
        offsets = None if self.offsets is None else self.offsets.pin_memory()
        ids = [each.pin_memory() for each in self.ids]
        return Gather._trusted(ids, self.tables, offsets, self.sparse, self.padding_idx)

    @property
    def num_rows(self) -> int:
        """N."""
        return self.ids[0].shape[0]

    @property
    def width(self) -> int:
        """D, the tables' widths added up."""
        return sum(table.shape[1] for table in self.tables)

    @property
    def dtype(self) -> torch.dtype:
        """That of the tables."""
        return self.tables[0].dtype

    @property
    def device(self) -> torch.device:
        """That of the tables."""
        return self.tables[0].device

    @property
    def batch_size(self) -> int:
        """U with offsets, else N."""
        return self.num_rows if self.offsets is None else self.offsets.shape[0] - 1

    def __len__(self) -> int:
        return self.batch_size

    def __repr__(self) -> str:
        tables = ", ".join(str(list(table.shape)) for table in self.tables)
        return f"Gather(rows={self.num_rows}, tables={tables}, {self.dtype})"

    def lengths(self) -> torch.Tensor:
        """`[U]` int64, the number of rows of each user."""
        if self.offsets is None:
            raise ValueError("lengths need offsets, got a Gather without")
        return self.offsets.diff()

    def rows(self) -> torch.Tensor:
        """`[N, D]`, copied out: what kernels avoid, and the reference reads."""
        columns = [
            embedding(each, table, padding_idx, sparse=self.sparse)
            for each, table, padding_idx in zip(savable(self.ids), self.tables, self.padding_idx, strict=True)
        ]
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)


def _check_embedding(name: str, table) -> None:
    """TypeError or ValueError where a module computes more than rows of its weight, all that a kernel reads."""
    if not isinstance(table, nn.Module):
        return
    different = changed(name, table, nn.Embedding)
    if different is not None:
        raise TypeError(f"{name} must be a tensor or a plain nn.Embedding, whose weight alone is read; {different}")
    for setting, neutral in (("max_norm", None), ("scale_grad_by_freq", False)):
        if getattr(table, setting) != neutral:
            raise ValueError(f"{name} must be an nn.Embedding with {setting}={neutral}, got {getattr(table, setting)}")


def _sparse(sparse, given) -> bool:
    if sparse is not None:
        checks.flag("sparse", sparse)
        return sparse
    kinds = {each.sparse for each in given if isinstance(each, nn.Embedding)}
    if len(kinds) > 1:
        raise ValueError("tables must agree in sparse, got an nn.Embedding with True and one with False")
    return kinds != {False}


def _settings(gather: Gather) -> tuple[bool, tuple[int | None, ...]]:
    return gather.sparse, tuple(gather.padding_idx)


pytree.register_pytree_node(
    Gather,
    lambda gather: ([gather.ids, gather.tables, gather.offsets], _settings(gather)),
    lambda children, settings: Gather._trusted(*children, *settings),
    serialized_type_name="din_kernels.Gather",
    to_dumpable_context=lambda settings: [settings[0], list(settings[1])],
    from_dumpable_context=lambda settings: (settings[0], tuple(settings[1])),
    flatten_with_keys_fn=lambda gather: (
        [(pytree.GetAttrKey(name), getattr(gather, name)) for name in ("ids", "tables", "offsets")],
        _settings(gather),
    ),
)
register_batch_type(Gather)
