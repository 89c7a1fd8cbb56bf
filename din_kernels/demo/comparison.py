"""The trained model's unit on its own batches: fused, the reference, and the padded unit of today's libraries."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from din_kernels.benchmarking.harness import Timing, interleaved
from din_kernels.benchmarking.local_activation import COMPILED, EAGER, FUSED, REFERENCE, calls, equal_variants
from din_kernels.benchmarking.shapes import Inputs
from din_kernels.data import Batch
from din_kernels.jagged import Jagged
from din_kernels.models import DIN
from din_kernels.nn import LocalActivationUnit

VARIANTS = (FUSED, REFERENCE, EAGER, COMPILED)


@torch.no_grad()
def unit_inputs(model: DIN, batch: Batch) -> Inputs:
    """What the first unit of `model` gets from a batch; the gradient of the pooled rows is 1."""
    candidate = {"item": batch.candidate_items, "category": batch.candidate_categories}
    query = model.embeddings.vectors("candidate", model.config.candidate, candidate)
    name, fields = next(iter(model.config.histories.items()))
    history = {"item": batch.history_items, "category": batch.history_categories}
    values = model.embeddings.vectors(f"histories[{name!r}]", dict(fields), history)
    unit = next(iter(model.units.values()))
    assert isinstance(unit, LocalActivationUnit)
    return Inputs(unit, query, Jagged(values, batch.offsets), batch.query_to_user, torch.ones_like(query))


def compare(
    batches: Sequence[Inputs], width: int, rounds: int = 5, names: Sequence[str] = VARIANTS
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time of a forward and backward of each variant over all `batches`, in turns; equal results asserted first.

    Padded variants are padded to `width`, the same for all batches, as static shapes ask.

    Returns:
        a timing by variant, and for each variant that does not run here, the reason.
    """
    made, reasons = equal_variants(batches[0], names, width)
    variants = {name: [calls(name, each, width) for each in batches] for name in made}

    def all_batches(name: str):
        return lambda: [each.both() for each in variants[name]]

    return interleaved({name: all_batches(name) for name in made}, rounds=(rounds, rounds), warm_up=1), reasons


def prepare(name: str, inputs: Inputs, width: int):
    """For `benchmarking.memory.peak_bytes`: a forward and backward of the variant."""
    return calls(name, inputs, width).both
