"""What the tests share: the backends to hold to the reference, poisoned memory, a hypothesis profile without chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings
from support.precision import widest

from din_kernels import backends, options

# Every backend with kernels that this machine runs; each claim about a kernel is made of each of them.
KERNELS = [name for name in options.BACKENDS if name != "reference" and backends.unavailable(name) is None]

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # ours are names and modes that no example changes
)
settings.load_profile("repeatable")


@pytest.fixture(params=KERNELS)
def backend(request) -> str:
    """Name of a backend under test."""
    return request.param


@pytest.fixture
def device(backend) -> str:
    """Device of the tensors that `backend` serves."""
    return backends.device_of(backend)


@pytest.fixture
def uninitialized_memory_is_nan():
    """torch fills torch.empty and its kin with NaN, so that a kernel which reads what nobody wrote is found out.

    torch does so under deterministic algorithms. A module asks for it by
    `pytestmark = pytest.mark.usefixtures("uninitialized_memory_is_nan")`.
    """
    assert torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan() and torch.ones(1).new_empty(1).isnan() and torch.empty_like(torch.ones(1)).isnan()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A claim that is made in double alone is not made of a backend that declares none: a skip, with its refusal."""
    try:
        return (yield)
    except backends.BackendError as refused:
        under_test = pyfuncitem.funcargs.get("backend")
        if under_test in KERNELS and widest(under_test) != torch.float64 and "got torch.float64" in str(refused):
            pytest.skip(str(refused))
        raise
