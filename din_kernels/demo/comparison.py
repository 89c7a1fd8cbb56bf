"""The fused unit beside the reference and the padded unit of today's libraries, on the same batches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from din_kernels.backends import unavailable, use_backend
from din_kernels.backends.reference.local_activation import padded_unit
from din_kernels.data import Batch
from din_kernels.jagged import Jagged
from din_kernels.models import DIN
from din_kernels.nn import LocalActivationUnit

FUSED, REFERENCE, EAGER, COMPILED = "fused", "reference, packed", "padded, eager", "padded, torch.compile"
VARIANTS = (FUSED, REFERENCE, EAGER, COMPILED)


class UnitInputs(NamedTuple):
    """What the unit gets from one batch, packed and padded."""

    query: torch.Tensor  # [Q, D]
    history: Jagged  # [N, D] of U users
    query_to_user: torch.Tensor  # [Q]
    padded: torch.Tensor  # [Q, T, D], a copy of the history per candidate
    mask: torch.Tensor  # [Q, T]


@torch.no_grad()
def unit_inputs(model: DIN, batch: Batch, width: int) -> UnitInputs:
    """The unit's inputs in a trained `model`; the padded copies have `width` behaviours, as static shapes ask."""
    query = model.embeddings.vectors("candidate", model.config.candidate, {
        "item": batch.candidate_items, "category": batch.candidate_categories,
    })  # fmt: skip
    name, fields = next(iter(model.config.histories.items()))
    values = model.embeddings.vectors(f"histories[{name!r}]", dict(fields), {
        "item": batch.history_items, "category": batch.history_categories,
    })  # fmt: skip
    history = Jagged(values, batch.offsets)
    padded = history.to_padded(width)[batch.query_to_user]
    mask = torch.arange(width) < history.lengths()[batch.query_to_user, None]
    return UnitInputs(query, history, batch.query_to_user, padded, mask)


def variant(name: str, unit: LocalActivationUnit) -> Callable[[UnitInputs], tuple[torch.Tensor, list[torch.Tensor]]]:
    """A forward and backward of the unit: pooled `[Q, D]`, then the gradients of its weights, of pooled's sum.

    The gradients of query and history are computed too, each in the layout of the variant.
    """
    weights = [layer.weight for layer in unit.linears]
    biases = [layer.bias for layer in unit.linears]

    def packed(inputs: UnitInputs):
        query, rows = inputs.query.detach().requires_grad_(), inputs.history.values.detach().requires_grad_()
        with use_backend("reference" if name == REFERENCE else "cpu", ops=("local_activation",)):
            pooled = unit(query, Jagged(rows, inputs.history.offsets), query_to_user=inputs.query_to_user)
        return pooled.detach(), torch.autograd.grad(pooled.sum(), [*weights, *biases, query, rows])

    function = torch.compile(padded_unit, dynamic=False) if name == COMPILED else padded_unit

    def padded(inputs: UnitInputs):
        query, rows = inputs.query.detach().requires_grad_(), inputs.padded.detach().requires_grad_()
        pooled = function(
            query, rows, inputs.mask, weights, biases, features=unit.features, activation=unit.activation,
            params=unit._activation_params(), normalize=unit.normalize, scale=unit.scale,
        )  # fmt: skip
        return pooled.detach(), torch.autograd.grad(pooled.sum(), [*weights, *biases, query, rows])

    return padded if name in (EAGER, COMPILED) else packed


def missing(name: str) -> str | None:
    """Why a variant cannot run on this machine, or None."""
    return unavailable("cpu") if name == FUSED else None


def require_equal(name: str, found, expected, layers: int) -> None:
    """Raises AssertionError when a variant's pooled rows or weight gradients differ from the reference's."""
    pairs = [("pooled", found[0], expected[0])]
    pairs += [
        (f"gradient {at}", a, b) for at, (a, b) in enumerate(zip(found[1], expected[1], strict=True)) if at < layers
    ]
    for what, ours, theirs in pairs:
        largest = theirs.abs().max().item()
        error = (ours - theirs).abs().max().item()
        if not error <= 1e-4 * largest + 1e-7:
            raise AssertionError(f"{name}: {what} must equal the reference's, got error {error} of {largest}")


def compare(
    unit: LocalActivationUnit, batches: Sequence[UnitInputs], rounds: int = 5, names: Sequence[str] = VARIANTS
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of one forward and backward per variant, interleaved; equal results asserted before it is timed.

    Returns:
        seconds by variant, and for each variant that does not run here, the reason.
    """
    run, reasons = {}, {}
    expected = variant(REFERENCE, unit)(batches[0])
    for name in names:
        reason = missing(name)
        if reason is None:
            run[name] = variant(name, unit)
            try:
                found = run[name](batches[0])
            except Exception as error:  # torch.compile fails in many ways where no C++ compiler is
                if name != COMPILED:
                    raise
                del run[name]
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            else:
                require_equal(name, found, expected, 2 * len(unit.linears))
        if reason is not None:
            reasons[name] = reason
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(rounds):
        for inputs in batches:
            for name, call in run.items():
                begin = time.perf_counter()
                call(inputs)
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}, reasons
