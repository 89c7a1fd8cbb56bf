"""Sparse optimizer steps as a torch op: checks, fake and the public function."""

from __future__ import annotations

from typing import NamedTuple

import torch

from din_kernels import backends, checks
from din_kernels.backends.reference.sparse_update import sparse_update as _reference
from din_kernels.ops.schemas import library

# States of every rule, as shapes: "VD" is [V, D], "V" is [V].
RULES = {
    "sgd": (), "momentum": ("VD",), "nesterov": ("VD",), "adagrad": ("VD",), "rowwise_adagrad": ("V",),
    "adam": ("VD", "VD"),
}  # fmt: skip


class Hyper(NamedTuple):
    """Numbers of one table's step; formulas in csrc/include/din_kernels/sparse_update.h."""

    lr: float
    step: float  # lr with the rule's own corrections, such as Adam's
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    coeff: float = 0.0
    maximize: bool = False
    decoupled: bool = False


class Table(NamedTuple):
    """One table's part of a step."""

    weight: torch.Tensor  # [V, D], updated in place
    states: list[torch.Tensor]  # as RULES says, updated in place; fp32 where weight is fp16 or bf16
    ids: torch.Tensor  # [N] int64 or int32, in any order, with duplicates
    grads: torch.Tensor  # [N, D], dtype of weight
    hyper: Hyper
    counts: torch.Tensor | None = None  # [V], n_j; None: no regularization
    padding_idx: int | None = None  # a row that is never touched


# --- implementation and fake of the registered op ---------------------------------------------------------------------


def _update(weights, states, ids, grads, counts, padding_idx, hyper, rule, backend):
    for table, (each, weight) in enumerate(zip(ids, weights, strict=True)):
        checks.ids_within(f"ids of table {table}", each, weight.shape[0])
    kernels, per_table, fields = backends.module(backend, "sparse_update"), len(RULES[rule]), len(Hyper._fields)
    for table, weight in enumerate(weights):
        kernels.sparse_update(
            rule, weight, states[table * per_table : (table + 1) * per_table], ids[table], grads[table], counts[table],
            padding_idx[table], Hyper(*hyper[table * fields : (table + 1) * fields]),
        )  # fmt: skip


def _update_fake(weights, states, ids, grads, counts, padding_idx, hyper, rule, backend):
    return None


library.impl("sparse_update", _update, "CompositeExplicitAutograd")
torch.library.register_fake("din_kernels::sparse_update", _update_fake, lib=library)


# --- checks and public function ---------------------------------------------------------------------------------------


def _check_table(at: int, table: Table, rule: str, counts_checked: bool) -> None:
    weight, ids, grads = table.weight, table.ids, table.grads
    checks.is_tensor(f"weight of table {at}", weight, 2, "[V, D]")
    checks.is_floating(f"weight of table {at}", weight)
    rows, dim = weight.shape
    checks.is_tensor(f"ids of table {at}", ids, 1, "[N]")
    checks.is_index(f"ids of table {at}", ids)
    checks.is_tensor(f"grads of table {at}", grads, 2, "[N, D]")
    checks.has_shape(f"grads of table {at}", grads, (ids.shape[0], dim), " (one row per id)")
    checks.same_dtype(f"grads of table {at}", grads, "weight", weight)
    if len(table.states) != len(RULES[rule]):
        raise ValueError(f"states of table {at} must be {len(RULES[rule])} for rule={rule!r}, got {len(table.states)}")
    for state, shape in zip(table.states, RULES[rule], strict=True):
        checks.has_shape(f"states of table {at}", state, (rows, dim) if shape == "VD" else (rows,))
        wide = torch.promote_types(weight.dtype, torch.float32)
        if state.dtype != wide:
            raise TypeError(f"states of table {at} must have dtype {wide} (weight: {weight.dtype}), got {state.dtype}")
    if table.counts is not None:
        checks.is_tensor(f"counts of table {at}", table.counts, 1, "[V]")
        checks.has_shape(f"counts of table {at}", table.counts, (rows,), " (one per row of weight)")
        checks.is_real(f"counts of table {at}", table.counts)
    checks.row_of(f"padding_idx of table {at}", table.padding_idx, rows, "rows of weight")
    for name, tensor in (
        ("ids", ids),
        ("grads", grads),
        ("counts", table.counts),
        *(("states", s) for s in table.states),
    ):
        if tensor is not None:
            checks.same_device(f"{name} of table {at}", tensor, "weight", weight)
    if table.counts is not None and not counts_checked:
        checks.ids_within(f"ids of table {at}", ids, rows)
        checks.counts_of_ids(f"counts of table {at}", table.counts, ids)


@torch.no_grad()
def sparse_update(tables: list[Table], rule: str, *, counts_checked: bool = False) -> None:
    """One step of `rule` on the rows that appear in each table's ids; no other row is read or written.

    Per table the ids are sorted once; then one pass sums the gradients of equal ids, adds coeff * w_j / n_j (paper
    section 5.1, equation 6) and updates weight and states. `din_kernels.optim` builds on this.

    Args:
        tables: what to update, see `Table`; everything is checked before anything is written.
        rule: "sgd", "momentum", "nesterov", "adagrad", "rowwise_adagrad" or "adam".
        counts_checked: the caller knows that no count is negative or NaN, so that those of the ids are not looked at.

    Raises:
        TypeError, ValueError, IndexError: naming the argument, what was expected and what came.
        din_kernels.BackendError: a forced backend cannot serve the call.

    Example:
        >>> table = Table(torch.ones(3, 2), [], torch.tensor([1, 1]), torch.ones(2, 2), Hyper(lr=0.1, step=0.1))
        >>> sparse_update([table], "sgd")
        >>> table.weight[:, 0].tolist()
        [1.0, 0.800000011920929, 1.0]
    """
    checks.one_of("rule", rule, RULES)
    served: dict[str, list[Table]] = {}
    for at, table in enumerate(tables):
        _check_table(at, table, rule, counts_checked)
        request = backends.Request("sparse_update", table.weight.device.type, table.weight.dtype, {
            "rows": backends.extent(table.weight.shape[0]), "entries": backends.extent(table.ids.shape[0]),
            "contiguous": all(tensor.is_contiguous() for tensor in (table.weight, *table.states)),
        })  # fmt: skip
        served.setdefault(backends.select(request), []).append(table)
    for at, table in enumerate(tables if "reference" in served or len(served) > 1 else ()):
        checks.ids_within(f"ids of table {at}", table.ids, table.weight.shape[0])
    for backend, group in served.items():
        if backend == "reference":
            for t in group:
                _reference(rule, t.weight, t.states, t.ids, t.grads, t.counts, t.padding_idx, t.hyper)
        else:
            torch.ops.din_kernels.sparse_update(
                [t.weight for t in group], [state for t in group for state in t.states], [t.ids for t in group],
                [t.grads for t in group], [t.counts for t in group],
                [-1 if t.padding_idx is None else t.padding_idx for t in group],
                [float(number) for t in group for number in t.hyper], rule, backend,
            )  # fmt: skip
    torch.autograd.graph.increment_version([tensor for t in tables for tensor in (t.weight, *t.states)])
