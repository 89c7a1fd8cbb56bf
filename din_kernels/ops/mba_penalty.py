"""Mini-batch aware regularization (paper section 5.1) as a torch op: checks, fake, autograd and the public function."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from din_kernels import backends, checks
from din_kernels.backends.calls import (
    MbaPenaltyCall,
    MbaPenaltyGrads,
    MbaPenaltyResult,
    MbaPenaltySaved,
    arithmetic_dtype,
)
from din_kernels.backends.reference.mba_penalty import mba_penalty as _reference
from din_kernels.inference import savable
from din_kernels.jagged import Jagged
from din_kernels.ops.direct import run
from din_kernels.ops.registration import Given, Gradient, Op, register
from din_kernels.ops.sparse_gradient import sparse_gradient

# --- checks, fake and autograd of the registered ops ------------------------------------------------------------------


def _check_values(call: MbaPenaltyCall) -> None:
    checks.ids_within("ids", call.ids, call.weight.shape[0], "rows of weight")
    checks.counts_of_ids("counts", call.counts, call.ids, readable=checks.at_hand)


def _fake(call: MbaPenaltyCall) -> MbaPenaltyResult:
    return MbaPenaltyResult(
        penalty=call.weight.new_empty((), dtype=arithmetic_dtype(call.weight.dtype)),
        unique=call.ids.new_empty(call.ids.shape[0], dtype=torch.int64),
        unique_count=call.ids.new_empty((), dtype=torch.int64),
    )


def _backward_fake(call: MbaPenaltyCall, saved: MbaPenaltySaved, grads: MbaPenaltyGrads) -> torch.Tensor:
    return call.weight.new_empty((grads.entries, call.weight.shape[1]) if call.sparse else call.weight.shape)


def _formula(given: Given, backward) -> dict:
    call, saved, grad = given.call, given.saved, given.incoming.penalty
    if grad is None:
        grad = torch.zeros((), dtype=arithmetic_dtype(call.weight.dtype), device=call.device)
    # Where the number of unique ids is at hand, the gradient has no more rows; else those behind it are zero.
    counted = call.sparse and checks.values_readable(saved.unique_count)
    entries = int(saved.unique_count) if counted else saved.unique.shape[0]
    rows = backward(MbaPenaltyGrads(grad, entries))
    if call.sparse:
        ids = saved.unique[:entries].clamp(min=0)
        rows = sparse_gradient([ids], [rows], call.weight.shape[0], coalesced=counted)
    return {"weight": rows}


OP = register(
    Op(
        name="mba_penalty",
        call=MbaPenaltyCall,
        result=MbaPenaltyResult,
        check=_check_values,
        fake=_fake,
        gradient=Gradient(
            saved=MbaPenaltySaved,
            grads=MbaPenaltyGrads,
            learned=("weight",),
            constant=("unique", "unique_count"),
            fake=_backward_fake,
            formula=_formula,
        ),
    )
)


# --- public function --------------------------------------------------------------------------------------------------


def _one_table(weight, ids, counts, coeff, padding_idx, sparse) -> torch.Tensor:
    checks.is_tensor("weight", weight, 2, "[V, D]")
    checks.is_floating("weight", weight)
    ids = ids.values if isinstance(ids, Jagged) else ids
    checks.is_tensor("ids", ids)
    checks.is_index("ids", ids)
    checks.same_device("ids", ids, "weight", weight)
    checks.is_tensor("counts", counts, 1, "[V]")
    checks.has_shape("counts", counts, (weight.shape[0],), " (one per row of weight)")
    checks.same_device("counts", counts, "weight", weight)
    checks.is_real("counts", counts)
    checks.number("coeff", coeff, at_least=0)
    checks.row_of("padding_idx", padding_idx, weight.shape[0], "rows of weight")
    checks.flag("sparse", sparse)
    ids = ids.reshape(-1)
    options = {"rows": backends.extent(weight.shape[0]), "entries": backends.extent(ids.shape[0])}
    backend = backends.select(backends.Request("mba_penalty", weight.device.type, weight.dtype, options))
    call = MbaPenaltyCall(
        weight=weight,
        ids=ids,
        counts=counts,
        coeff=float(coeff),
        padding_idx=-1 if padding_idx is None else int(padding_idx),
        sparse=sparse,
    )
    if backends.by_reference(backend, weight.device):
        _check_values(call)
        call = savable(call._replace(counts=counts.detach()))
        return _reference(call.weight, call.ids, call.counts, call.coeff, padding_idx, sparse)
    return run(OP, call, backend).penalty


def mba_penalty(
    weight: torch.Tensor | Sequence[torch.Tensor],
    ids: torch.Tensor | Jagged | Sequence[torch.Tensor | Jagged],
    counts: torch.Tensor | Sequence[torch.Tensor],
    coeff: float,
    padding_idx: int | None = None,
    *,
    sparse: bool = False,
) -> torch.Tensor:
    """(coeff / 2) * sum over the unique ids j of ||w_j||^2 / n_j, a scalar that adds coeff * w_j / n_j to the gradient.

    Rows that the batch does not hold get no gradient. `din_kernels.optim` does the same inside the optimizer's pass.

    Args:
        weight: `[V, D]`, an embedding table; or a list of tables, whose penalties are added.
        ids: int64 or int32 tensor of any shape, or a Jagged of ids, those of the batch; duplicates count once. One per
            table where weight is a list.
        counts: `[V]`, n_j: the number of training samples in which id j appears. 0 counts as 1: an id that the counted
            data never held, as new ids of a stream and held-out ones, is in one sample at least, that of this batch. A
            negative count or NaN of an id of the batch is refused. Counts get no gradient. One per table where weight
            is a list.
        coeff: the paper's lambda, at least 0.
        padding_idx: an id that is never regularized.
        sparse: whether weight's gradient is a coalesced sparse tensor of the unique rows, as for
            `nn.Embedding(sparse=True)`, or dense.

    Inference tensors work as in `local_activation`.

    Raises:
        TypeError, ValueError, IndexError: naming the argument, what was expected and what came.
        din_kernels.BackendError: a forced backend cannot serve the call.

    Example:
        >>> weight = torch.ones(3, 2, requires_grad=True)
        >>> penalty = mba_penalty(weight, torch.tensor([[1, 1], [2, 1]]), torch.tensor([5, 2, 1]), coeff=0.5)
        >>> penalty.item()  # 0.25 * (2 / 2 + 2 / 1)
        0.75
    """
    if isinstance(weight, torch.Tensor):
        return _one_table(weight, ids, counts, coeff, padding_idx, sparse)
    weight = checks.listed("weight", weight)
    if not weight:
        raise ValueError("weight must be a tensor or a list of at least one, got none")
    for at, table in enumerate(weight):
        checks.is_tensor(f"weight[{at}]", table, 2, "[V, D]")
    for name, given in (("ids", ids), ("counts", counts)):
        if isinstance(given, (torch.Tensor, Jagged)) or len(checks.listed(name, given)) != len(weight):
            raise ValueError(
                f"{name} must be a list with one entry per table ({len(weight)}), got {type(given).__name__}"
            )
    parts = [_one_table(*each, coeff, padding_idx, sparse) for each in zip(weight, ids, counts, strict=True)]
    return torch.stack(parts).sum()
