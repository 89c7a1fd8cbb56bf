"""Sparse optimizer steps as a torch op: checks, fake and the public function."""

from __future__ import annotations

import math

import torch

from din_kernels import backends, checks
from din_kernels.backends.calls import Hyper, SparseUpdateCall, Table, arithmetic_dtype
from din_kernels.backends.reference.sparse_update import sparse_update as _reference
from din_kernels.ops.direct import run
from din_kernels.ops.registration import Op, register
from din_kernels.options import RULES

__all__ = ["RULES", "Hyper", "Table", "sparse_update"]


def _check_values(call: SparseUpdateCall) -> None:
    for at, (ids, weight) in enumerate(zip(call.ids, call.weights, strict=True)):
        checks.ids_within(f"ids of table {at}", ids, weight.shape[0])


def _fake(call: SparseUpdateCall) -> None:
    return None


OP = register(Op("sparse_update", SparseUpdateCall, None, _check_values, _fake))


# --- checks and public function ---------------------------------------------------------------------------------------


def _check_table(at: int, table: Table, rule: str, counts_checked: bool) -> None:
    if not isinstance(table, Table):
        raise TypeError(f"tables[{at}] must be a din_kernels.ops.sparse_update.Table, got {type(table).__name__}")
    weight, ids, grads = table.weight, table.ids, table.grads
    checks.is_tensor(f"weight of table {at}", weight, 2, "[V, D]")
    checks.is_floating(f"weight of table {at}", weight)
    rows, dim = weight.shape
    checks.is_tensor(f"ids of table {at}", ids, 1, "[N]")
    checks.is_index(f"ids of table {at}", ids)
    checks.is_tensor(f"grads of table {at}", grads, 2, "[N, D]")
    checks.has_shape(f"grads of table {at}", grads, (ids.shape[0], dim), " (a row for each of ids, D of weight)")
    checks.same_dtype(f"grads of table {at}", grads, "weight", weight)
    _check_hyper(at, table.hyper)
    states = checks.listed(f"states of table {at}", table.states)
    if len(states) != len(RULES[rule]):
        raise ValueError(f"states of table {at} must be {len(RULES[rule])} for rule={rule!r}, got {len(states)}")
    for state, shape in zip(states, RULES[rule], strict=True):
        checks.is_tensor(f"states of table {at}", state)
        checks.has_shape(f"states of table {at}", state, (rows, dim) if shape == "VD" else (rows,), " (as weight)")
        wide = arithmetic_dtype(weight.dtype)
        if state.dtype != wide:
            raise TypeError(f"states of table {at} must have dtype {wide} (weight: {weight.dtype}), got {state.dtype}")
    if table.counts is not None:
        checks.is_tensor(f"counts of table {at}", table.counts, 1, "[V]")
        checks.has_shape(f"counts of table {at}", table.counts, (rows,), " (one per row of weight)")
        checks.is_real(f"counts of table {at}", table.counts)
    checks.row_of(f"padding_idx of table {at}", table.padding_idx, rows, "rows of weight")
    for name, tensor in (("weight", weight), *(("states", state) for state in states)):
        checks.is_writable(f"{name} of table {at}", tensor)
    others = [("ids", ids), ("grads", grads), ("counts", table.counts)]
    for name, tensor in (*others, *(("states", state) for state in states)):
        if tensor is not None:
            checks.same_device(f"{name} of table {at}", tensor, "weight", weight)
    if table.counts is not None and not counts_checked:
        checks.ids_within(f"ids of table {at}", ids, rows)
        checks.counts_of_ids(f"counts of table {at}", table.counts, ids)


def _check_hyper(at: int, hyper: Hyper) -> None:
    """TypeError or ValueError unless all numbers are finite, and those of a rule's formula at least 0."""
    if not isinstance(hyper, Hyper):
        raise TypeError(
            f"hyper of table {at} must be a din_kernels.ops.sparse_update.Hyper, got {type(hyper).__name__}"
        )
    for name, value in zip(Hyper._fields, hyper, strict=True):
        if name in ("maximize", "decoupled"):
            checks.flag(f"hyper.{name} of table {at}", value)
        elif type(value) is not float or not 0 <= value < math.inf:
            signed = name in ("lr", "step")
            checks.number(f"hyper.{name} of table {at}", value, at_least=None if signed else 0)


def _readable(table: Table) -> Table:
    """The table with counts `[V]` whose numbers lie in memory one behind the other.

    torch sees to that for every tensor that an op is given but those in a list of optional ones: a negated view, or one
    of its zero tensors, would reach a kernel as memory that holds other numbers.
    """
    counts = table.counts
    if counts is None or torch.compiler.is_compiling():
        return table
    counts = counts.clone() if counts._is_zerotensor() else counts.resolve_neg().contiguous()
    return table._replace(counts=counts)


def _request(table: Table) -> backends.Request:
    asked = {
        "rows": backends.extent(table.weight.shape[0]),
        "entries": backends.extent(table.ids.shape[0]),
        "contiguous": all(tensor.is_contiguous() for tensor in (table.weight, *table.states)),
    }
    return backends.Request("sparse_update", table.weight.device.type, table.weight.dtype, asked)


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
    checks.flag("counts_checked", counts_checked)
    tables = checks.listed("tables", tables, "tables")
    for at, table in enumerate(tables):
        _check_table(at, table, rule, counts_checked)
    tables = [_readable(table) for table in tables]
    served: dict[str, list[Table]] = {}
    for table in tables:
        served.setdefault(backends.select(_request(table)), []).append(table)
    calls = {backend: SparseUpdateCall.of(group, rule) for backend, group in served.items()}
    if "reference" in calls or len(calls) > 1:  # one call checks its ids before it writes, several need this
        _check_values(SparseUpdateCall.of(tables, rule))
    for backend, call in calls.items():
        if backends.by_reference(backend, call.device):
            for t in call.tables():
                _reference(rule, t.weight, t.states, t.ids, t.grads, t.counts, t.padding_idx, t.hyper)
        else:
            run(OP, call, backend)
    torch.autograd.graph.increment_version([tensor for t in tables for tensor in (t.weight, *t.states)])
