"""Claims about what ops return: the dtypes and shapes that their fakes promise, on every backend that serves."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from support.cuda_backend import device_of
from support.recorded_ops import calls_of_ops
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

import din_kernels as dk
from din_kernels import backends, config
from din_kernels.backends.calls import DiceResult, LocalActivationResult, MbaPenaltyResult

UNITS = {
    "sigmoid": {},
    "softmax": {"normalize": "softmax"},
    "prelu, outer": {"activation": "prelu", "features": "outer"},
    "dice": {"activation": "dice", "normalize": "softmax"},
    "no hidden layer": {"hidden": ()},
}


@pytest.fixture(params=["cpu", "cuda", "triton"])
def place(request, monkeypatch):
    """(backend, device); CUDA kernels on their emulation, Triton's where they run in this process."""
    name = request.param
    if name == "cuda":
        return name, device_of("emulated", monkeypatch)
    if backends.unavailable(name) is not None:
        pytest.skip(backends.unavailable(name))
    return name, "cpu" if name == "cpu" or config.triton_interprets() else "cuda"


def described(results) -> list[tuple[torch.dtype, tuple[int, ...], str]]:
    return [(each.dtype, tuple(each.shape), each.device.type) for each in pytree.tree_leaves(results)]


def promised(function, arguments):
    """What the op's fake returns."""
    with FakeTensorMode() as mode:
        fakes = pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments)
        return function(*fakes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", UNITS)
def test_results_have_the_dtypes_and_shapes_of_the_fakes(name, dtype, place):
    backend, device = place
    unit = dk.nn.LocalActivationUnit(6, **({"hidden": (5, 3)} | UNITS[name])).to(device)
    tables = [torch.randn(9, width, device=device, dtype=dtype, requires_grad=True) for width in (4, 2)]
    ids, offsets = torch.arange(7, device=device), torch.tensor([0, 2, 2, 7], device=device)
    rows = torch.randn(5, 6, device=device, dtype=dtype, requires_grad=True)
    dice, counts = dk.nn.Dice(6, affine=True).to(device), torch.ones(9, device=device)

    def step():
        query = dk.Gather([ids[:3], ids[:3]], tables, sparse=False)
        pooled, weights = unit(query, dk.Gather([ids, ids], tables, offsets, sparse=False), return_weights=True)
        penalty = dk.mba_penalty(tables[0], ids, counts, 0.1)
        (pooled.sum() + weights.values.sum() + dice(rows).sum() + penalty).backward()

    with dk.use_backend(backend):
        called = calls_of_ops(step)
    assert len(called) == 6
    for function, arguments, results in called:
        assert described(results) == described(promised(function, arguments)), function.name()


def test_logsumexp_is_double_and_the_penalty_single_precision_at_least_on_every_backend(place):
    backend, device = place
    table = torch.randn(9, 6, device=device, dtype=torch.bfloat16, requires_grad=True)
    unit = dk.nn.LocalActivationUnit(6, (5,), normalize="softmax").to(device)
    history = dk.Jagged(table, torch.tensor([0, 4, 9], device=device))

    def step():
        unit(table[:2], history)
        dk.mba_penalty(table, torch.arange(3, device=device), torch.ones(9, device=device), 0.1)
        dk.dice(table, torch.zeros(6, device=device), training=True)

    with dk.use_backend(backend):
        unit_results, penalty_results, dice_results = (results for _, _, results in calls_of_ops(step))
    assert LocalActivationResult(*unit_results).logsumexp.dtype == torch.float64
    assert MbaPenaltyResult(*penalty_results).penalty.dtype == torch.float32
    assert DiceResult(*dice_results).mean.dtype == torch.float32


def test_triton_keeps_to_the_fakes_in_its_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", __file__, "-k", "triton and not interpreter"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and "16 passed" in done.stdout, done.stdout[-5000:]
