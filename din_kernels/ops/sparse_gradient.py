"""Sparse gradients of tables, made of the gradients of the rows that ids name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from din_kernels.ops.schemas import library


def sparse_gradient(
    ids: Sequence[torch.Tensor],  # [n_k] each, one per use of the table
    rows: Sequence[torch.Tensor],  # [n_k, D] each
    size: int,  # V
    padding_idx: int = -1,  # the row that gets no gradient; -1: none
    coalesced: bool = False,
) -> torch.Tensor:
    """`[V, D]` with an entry per id, those of all uses one after the other.

    In a traced graph an op makes it, which copies what it is given: Inductor does not know that a sparse tensor holds
    on to its indices and values, and hands their memory to the next kernel.
    """
    joined = torch.cat([each.to(torch.int64) for each in ids]) if len(ids) > 1 else ids[0].to(torch.int64)
    values = torch.cat(list(rows)) if len(rows) > 1 else rows[0]
    if type(values) in (torch.Tensor, torch.nn.Parameter):
        return _made(joined, values, size, padding_idx, coalesced)
    return torch.ops.din_kernels.sparse_gradient(joined, values, size, padding_idx)


def _made(ids, rows, size, padding_idx, coalesced):
    if padding_idx >= 0:
        kept = ids != padding_idx
        ids, rows = ids[kept], rows[kept]
    shape = (size, rows.shape[1])
    return torch.sparse_coo_tensor(ids.unsqueeze(0), rows, shape, check_invariants=False, is_coalesced=coalesced)


def _copied(ids, rows, size, padding_idx):
    return _made(ids.clone(), rows.clone(), size, padding_idx, False)


def _fake(ids, rows, size, padding_idx):
    return torch.sparse_coo_tensor(ids.unsqueeze(0), rows, (size, rows.shape[1]), check_invariants=False)


library.impl("sparse_gradient", _copied, "CompositeExplicitAutograd")
torch.library.register_fake("din_kernels::sparse_gradient", _fake, lib=library)
