"""Microbenchmarks for pytest-benchmark, to compare two states of the code: `pytest benchmarks --benchmark-autosave`."""

from __future__ import annotations

import pytest

from din_kernels.benchmarking.local_activation import FUSED, calls
from din_kernels.benchmarking.shapes import SHAPES, ShapeUnavailable, inputs_of


@pytest.fixture(scope="module", params=["uniform100", "uniform100_d64", "real", "industrial", "serving"])
def variant(request):
    """The fused unit on a house shape."""
    try:
        return calls(FUSED, inputs_of(SHAPES[request.param]))
    except ShapeUnavailable as reason:
        pytest.skip(str(reason))


def test_forward(benchmark, variant):
    benchmark(variant.forward)


def test_forward_and_backward(benchmark, variant):
    benchmark(variant.both)
