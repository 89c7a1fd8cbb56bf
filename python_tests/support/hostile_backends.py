"""Hostile calls under one backend after the other: whoever serves, the outcome is the same."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from support.hostile_calls import CALLS, hostile, told

import din_kernels as dk
from din_kernels.verification import FLOOR

# Entry points that compute by a backend; all others give the same whatever is forced.
COMPUTING = (
    *("local_activation", "LocalActivationUnit()", "Dice", "dice", "mba_penalty", "sparse_update"),
    *("SparseSGD", "SparseAdagrad", "SparseRowWiseAdagrad", "SparseAdam", "DIN"),
)


class Outcome(NamedTuple):
    """Of a call: what refused it, or its results and the gradients of its arguments."""

    refusal: Exception | None
    results: list = []
    gradients: list = []

    @property
    def unserved(self) -> bool:
        """Whether the forced backend has no kernel for the call."""
        return isinstance(self.refusal, dk.BackendError)


def outcome(name: str, given: dict, backend: str | None) -> Outcome:
    """Of a call with the arguments `given` on a backend; None: without a block."""
    try:
        if backend is None:
            results = CALLS[name].run(given)
        else:
            with dk.use_backend(backend):
                results = CALLS[name].run(given)
    except (TypeError, ValueError, IndexError, dk.BackendError) as refusal:
        return Outcome(refusal)
    wanted = [each for each in _leaves(given) if isinstance(each, torch.Tensor) and each.is_leaf and each.requires_grad]
    return Outcome(None, _leaves(results), [each.grad for each in wanted])


def difference(name: str, seed: int, backend: str, mild: bool = False) -> str | None:
    """How a backend's outcome of a hostile call differs from the one without a block, or None."""

    def given():  # anew, since a call may write its arguments
        return hostile(name, seed, mild)[0]

    expected, got = (outcome(name, given(), each) for each in (None, backend))
    words = told(name, seed, mild)
    if got.unserved:
        worded = re.fullmatch(rf"backend '{backend}' cannot serve \w+: .+", str(got.refusal))
        return None if worded else f"{words}: {got.refusal}"
    if repr(got.refusal) != repr(expected.refusal):
        return f"{words}: {got.refusal!r}, without a block {expected.refusal!r}"
    if got.refusal is not None:
        return None
    exact = _leaves(CALLS[name].expected(given()))
    own = outcome(name, given(), "reference")
    largest = max((_largest(each) for each in exact), default=0.0)
    huge = "huge" in words  # which of two rounded numbers of 10^18 is the greater one is chance
    found = _beyond(got.results, own.results, exact, 0.0, largest, huge)
    if found is None and not any(each is not None and np.isnan(_numbers(each)).any() for each in own.results):
        # The oracle of hostile calls has no gradients. Those of a wrong formula differ by far more than this.
        found = _beyond(got.gradients, own.gradients, own.gradients, 1e-3, largest, huge)
    return f"{words}: {found}" if found else None


def _beyond(got: list, own: list, exact: list, slack: float, largest: float, huge: bool) -> str | None:
    """Why a tensor is beyond its bound, or None; `own` is the reference's and `exact` what is right.

    The bound is that of `verification.deviations`, twice the reference's own error and the floor of the dtype, or
    `slack` where that is more. The floor counts from the largest of all results, since some are variances or softmax
    gradients whose terms cancel.
    """
    if not len(got) == len(own) == len(exact):
        return f"got {len(got)} tensors, the reference {len(own)}, expected {len(exact)}"
    for ours, theirs, right in zip(got, own, exact, strict=True):
        found = _differs(ours, theirs, right)
        if found is not None:
            return found
        if ours is None or huge:
            continue
        floor = max(FLOOR.get(getattr(ours, "dtype", torch.float64), 0.0), slack) * max(largest, _largest(right))
        error, bound = _distance(ours, right), 2 * _distance(theirs, right) + floor
        if error > bound:
            return f"error {error:.3g}, bound {bound:.3g}"
        if not np.array_equal(np.isnan(_numbers(ours)), np.isnan(_numbers(theirs))):
            return f"got {ours}, the reference {theirs}"
    return None


def _differs(got, own, exact) -> str | None:
    """In what, beside its numbers, a result differs."""
    if got is None or exact is None:
        return None if got is exact else f"got {got}, expected {exact}"
    if isinstance(got, torch.Tensor) and got.dtype != own.dtype:
        return f"got {got.dtype}, the reference {own.dtype}"
    if np.shape(_numbers(got)) != np.shape(_numbers(exact)):
        return f"got shape {np.shape(_numbers(got))}, expected {np.shape(_numbers(exact))}"
    return None


def _distance(a, b) -> float:
    """The largest difference of two results where both are finite."""
    return _largest(_numbers(a) - _numbers(b))


def _largest(value) -> float:
    if value is None:
        return 0.0
    finite = np.abs(_numbers(value))
    return float(finite[np.isfinite(finite)].max(initial=0.0))


def _leaves(value) -> list:
    """Nested arguments or results as one list."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, dk.Jagged):
        value = [value.values]
    if isinstance(value, (list, tuple)):
        return [each for part in value for each in _leaves(part)]
    return [value]


def _numbers(value) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().to_dense() if value.is_sparse else value.detach()
        return value.double().as_subclass(torch.Tensor).numpy(force=True)
    return np.asarray(value, dtype=np.float64)
