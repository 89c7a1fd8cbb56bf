"""Claims about our kernels inside real programs, made of each backend that runs here: on the CPU, on a GPU, and of
Triton in the interpreter where TRITON_INTERPRET=1 is set."""

from __future__ import annotations

import copy

import pytest
import torch
from programs import assert_same, gradients, problem
from torch.utils.checkpoint import checkpoint

import din_kernels as dk
from din_kernels import backends

PLACES = [("cpu", name) for name in ("cpu", "triton") if name == "cpu" or backends.unavailable(name) is None]
if torch.cuda.is_available():
    names = [name for name in ("cuda", "triton") if backends.unavailable(name) is None]
    PLACES = [("cpu", "cpu"), *(pytest.param(("cuda", name), marks=pytest.mark.gpu) for name in names)]


@pytest.fixture(params=PLACES, ids=lambda place: "-".join(place))
def device(request):
    device, name = request.param
    with dk.use_backend(name, ops=("local_activation",)):
        yield device


def small(device, **options):
    return problem(users=6, dim=20, device=device, **options)


def test_torch_compile_takes_the_unit_whole(device):
    unit, query, history = small(device)
    compiled = torch.compile(
        lambda q, h: unit(q, h), fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager"
    )
    assert_same([compiled(query, history)], [unit(query, history)], rtol=0, atol=0)


def test_autocast_stores_rows_in_half_precision_and_keeps_weights(device):
    unit, query, history = small(device)
    with torch.autocast(device, torch.bfloat16):
        pooled = unit(query, history)
    assert pooled.dtype == torch.bfloat16
    grads = gradients(pooled, unit, query, history)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


def test_checkpointed_gradients_are_the_same(device):
    unit, query, history = small(device)
    torch.use_deterministic_algorithms(True)
    try:
        plain = gradients(unit(query, history), unit, query, history)
        again = gradients(checkpoint(unit, query, history, use_reentrant=False), unit, query, history)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(again, plain, rtol=0, atol=0)


def test_distributed_gradient_hooks_fire(device, tmp_path):
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", store, rank=0, world_size=1)
    try:
        unit, query, history = small(device)
        plain = copy.deepcopy(unit)
        wrapped = torch.nn.parallel.DistributedDataParallel(unit, device_ids=[0] if device == "cuda" else None)
        for module in (wrapped, plain):
            module(query, history).square().sum().backward()
        assert_same([p.grad for p in unit.parameters()], [p.grad for p in plain.parameters()], rtol=1e-4, atol=1e-4)
    finally:
        torch.distributed.destroy_process_group()
