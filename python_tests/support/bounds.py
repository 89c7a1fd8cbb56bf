"""The assertion behind every claim about a kernel's numbers: no tensor deviates by more than its bound."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

import din_kernels as dk
from din_kernels.verification import Deviation


def holds(found: Iterable[Deviation]) -> None:
    """Asserts the bound on every tensor; a NaN is beyond any bound, and nothing compared is a failure too."""
    compared = list(found)
    assert compared, "no tensor was compared"
    wrong = [each for each in compared if not each.ratio <= 1]
    assert not wrong, "\n".join(f"{each.tensor}: error {each.error:.3g}, bound {each.bound:.3g}" for each in wrong)


def holds_where_served(found: Iterable[Deviation]) -> None:
    """`holds`, and a skip with the backend's reason where it refuses the call."""
    try:
        found = list(found)
    except dk.BackendError as refused:
        pytest.skip(str(refused))
    holds(found)
