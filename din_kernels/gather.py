"""`Gather`: rows of embedding tables by id, fetched inside a kernel instead of being copied out first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import embedding
from torch.utils import _pytree as pytree

from din_kernels import checks
from din_kernels.jagged import check_offsets

MAX_TABLES = 8


class Gather:
    """Rows given as ids: row n is `[tables[0][ids[0][n]], tables[1][ids[1][n]], ...]`, of width D = D_0 + D_1 + ...

    In `local_activation` and `nn.LocalActivationUnit` it stands for a history (with offsets) or a query (without).

    Args:
        ids: `[N]` int64 or int32, or one such tensor per table.
        tables: `[V, D]`, or a list of tables `[V_k, D_k]` of one dtype, at most 8.
        offsets: `[U + 1]`, as in `Jagged`; None for candidates.
        sparse: whether gradients of the tables are sparse, as with `nn.Embedding(sparse=True)`: one entry per row n, so
            that every id of the batch is in them, even where its gradient is 0. Else dense `[V_k, D_k]`.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device; as many ids as tables are needed.
        IndexError: an id outside its table.

    Example:
        >>> items, categories = torch.randn(10, 6), torch.randn(3, 2)
        >>> ids = [torch.tensor([7, 7, 1]), torch.tensor([2, 2, 0])]
        >>> history = Gather(ids, [items, categories], offsets=torch.tensor([0, 3]))
        >>> history.rows().shape
        torch.Size([3, 8])
    """

    __slots__ = ("ids", "offsets", "sparse", "tables")

    def __init__(
        self,
        ids: torch.Tensor | Sequence[torch.Tensor],
        tables: torch.Tensor | Sequence[torch.Tensor],
        offsets: torch.Tensor | None = None,
        sparse: bool = True,
    ):
        self.ids = [ids] if isinstance(ids, torch.Tensor) else list(ids)
        self.tables = [tables] if isinstance(tables, torch.Tensor) else list(tables)
        self.sparse = bool(sparse)
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
        self.offsets = None
        if offsets is not None:
            check_offsets(offsets, self.num_rows, "ids", self.ids[0])
            self.offsets = offsets.to(torch.int64)

    @classmethod
    def _trusted(cls, ids, tables, offsets, sparse) -> Gather:
        made = object.__new__(cls)
        made.ids, made.tables, made.offsets, made.sparse = ids, tables, offsets, sparse
        return made

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
        return self.offsets[1:] - self.offsets[:-1]

    def rows(self) -> torch.Tensor:
        """`[N, D]`, copied out: what kernels avoid, and the reference reads."""
        pairs = zip(self.ids, self.tables, strict=True)
        columns = [embedding(each, table, sparse=self.sparse) for each, table in pairs]
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)


pytree.register_pytree_node(
    Gather,
    lambda gather: ([gather.ids, gather.tables, gather.offsets], gather.sparse),
    lambda children, sparse: Gather._trusted(*children, sparse),
    serialized_type_name="din_kernels.Gather",
    flatten_with_keys_fn=lambda gather: (
        [(pytree.GetAttrKey(name), getattr(gather, name)) for name in ("ids", "tables", "offsets")],
        gather.sparse,
    ),
)
