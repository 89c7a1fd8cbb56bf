"""Claims about our kernels inside real programs, made of each backend that runs here: on the CPU, on a GPU, and of
Triton in the interpreter where TRITON_INTERPRET=1 is set."""

from __future__ import annotations

import copy

import pytest
import torch
from support.programs import assert_same, gradients, problem
from support.recorded_ops import results_of_ops
from torch.utils.checkpoint import checkpoint

import din_kernels as dk
from din_kernels import backends

PLACES = [("cpu", name) for name in ("cpu", "cuda", "triton") if name == "cpu" or backends.unavailable(name) is None]
if torch.cuda.is_available():
    names = [name for name in ("cuda", "triton") if backends.unavailable(name) is None]
    PLACES = [("cpu", "cpu"), *(pytest.param(("cuda", name), marks=pytest.mark.gpu) for name in names)]


@pytest.fixture(params=PLACES, ids=lambda place: "-".join(place))
def device(request):
    device, name = request.param
    with dk.use_backend(name):
        yield device


def small(device, **options):
    return problem(users=3, dim=20, device=device, **options)


def test_torch_compile_takes_the_unit_whole(device):
    torch._dynamo.reset()  # a trace keeps the backend that it was made with
    unit, query, history = small(device)
    compiled = torch.compile(
        lambda q, h: unit(q, h), fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager"
    )
    found = []
    for call in (compiled, unit):
        pooled = call(query, history)
        found.append([pooled, *gradients(pooled, unit, query, history)])
    (ours, *ours_grads), (theirs, *their_grads) = found
    assert_same([ours], [theirs], rtol=0, atol=0)
    assert_same(ours_grads, their_grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "prelu"},
        {"activation": "dice"},
        {"features": "outer", "hidden": ()},
        {"normalize": "softmax"},
    ],
)
def test_results_of_ops_share_no_memory_and_begin_at_16_bytes_as_torch_compile_takes_them_to(device, options):
    unit = dk.nn.LocalActivationUnit(15, options.pop("hidden", (7, 3)), **options).to(device)
    tables = [torch.randn(9, width, device=device, requires_grad=True) for width in (10, 5)]
    ids, offsets = torch.arange(7, device=device), torch.tensor([0, 2, 7], device=device)
    counts, rows = torch.ones(9, device=device), torch.randn(5, 7, device=device, requires_grad=True)
    dice = dk.nn.Dice(7, affine=True).to(device)

    def step(training):
        unit.train(training), dice.train(training)
        history = dk.Gather([ids, ids], tables, offsets, sparse=False)
        pooled = unit(dk.Gather([ids[:2], ids[:2]], tables, sparse=False), history)
        penalty = dk.mba_penalty(tables, [ids, ids], [counts, counts], 0.1, sparse=not training)
        (pooled.sum() + dice(rows).sum() + penalty).backward()
        for table in tables:
            table.grad = None

    for name, tensors in results_of_ops(lambda: [step(True), step(False)]):
        tensors = [tensor for tensor in tensors if tensor.numel()]
        assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors), name
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors), name


def test_autocast_stores_rows_in_half_precision_and_keeps_weights(device):
    unit, query, history = small(device)
    with torch.autocast(device, torch.bfloat16):
        pooled = unit(query, history)
    assert pooled.dtype == torch.bfloat16
    grads = gradients(pooled, unit, query, history)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("options", [{}, {"features": "outer"}])
def test_a_backward_called_under_autocast_computes_as_precisely_as_one_called_outside(device, options):
    unit, query, history = small(device, **options)
    with torch.autocast(device, torch.bfloat16):
        pooled = unit(query, history)
        inside = torch.autograd.grad(pooled.float().sum(), [query, *unit.parameters()], retain_graph=True)
    outside = torch.autograd.grad(pooled.float().sum(), [query, *unit.parameters()])
    rows = dk.Jagged(history.values.bfloat16(), history.offsets)
    assert_same([pooled], [unit(query.bfloat16(), rows)], rtol=0, atol=0)
    # Products in bf16, whose rounding is 4e-3, would show.
    assert_same(inside, outside, rtol=1e-4, atol=1e-4)


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
