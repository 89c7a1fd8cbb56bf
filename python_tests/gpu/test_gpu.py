"""Claims that need a GPU, made of each GPU backend that runs here. What any device can show is in test_programs.py.

A representative set: `pytest -m "gpu and not full"`; every combination: `make test-gpu`.
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from support.bounds import holds
from support.programs import assert_same, gradients, problem

import din_kernels as dk
from din_kernels import backends
from din_kernels.ops.local_activation import FEATURES, NORMALIZATIONS
from din_kernels.optim import SparseAdagrad
from din_kernels.verification import ACTIVATION_CASES, LAYOUTS, deviations, make_case
from din_kernels.verification_ops import op_cases, op_deviations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
# Else torch refuses products by cuBLAS under deterministic algorithms; read when a process first uses it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Every value of every option; a kernel compiles in seconds, so the product of all is for the full set.
SAMPLE = [(FEATURES[at % 3], ACTIVATION_CASES[at % 7], NORMALIZATIONS[at % 2], LAYOUTS[at % 5]) for at in range(14)]
NAMES = [name for name in ("cuda", "triton") if backends.unavailable(name) is None] or ["triton"]


@pytest.fixture(params=NAMES)
def backend(request):
    with dk.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SAMPLE, ids="-".join)
def test_outputs_and_all_gradients_equal_the_reference(case, dtype, backend):
    holds(deviations(make_case(*case), backend, dtype, "cuda"))


@pytest.mark.full
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATION_CASES)
@pytest.mark.parametrize("features", FEATURES)
def test_every_combination_equals_the_reference(features, activation, normalize, backend):
    for layout, dtype in itertools.product(LAYOUTS, DTYPES):
        holds(deviations(make_case(features, activation, normalize, layout), backend, dtype, "cuda"))


@pytest.mark.parametrize("case", list(op_cases()), ids=lambda case: f"{case.op}: {case.name}")
def test_the_other_ops_equal_the_reference(case, backend):
    for dtype in DTYPES:
        holds(op_deviations(case, backend, dtype, "cuda"))


def test_a_captured_graph_replays_forward_and_backward(backend):
    unit, query, history = problem()
    expected = gradients(unit(query, history), unit, query, history)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients(unit(query, history), unit, query, history)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gradients(unit(query, history), unit, query, history)
    graph.replay()
    assert_same(found, expected, rtol=1e-4, atol=1e-4)


def test_kernels_run_on_the_current_stream(backend):
    unit, query, history = problem()
    expected = unit(query, history)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        spoilt = query * 0  # in time only on this stream
        spoilt += query
        found = unit(spoilt, history)
    stream.synchronize()
    assert_same([found], [expected], rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_may_be_on_another_device_than_the_current_one(backend):
    here, there = problem(), problem(device="cuda:1")
    there[0].load_state_dict(here[0].state_dict())
    assert_same([there[0](*there[1:]).cpu()], [here[0](*here[1:]).cpu()])


@pytest.mark.parametrize("activation", ["sigmoid", "dice"])
def test_no_step_of_ours_waits_for_the_gpu(activation, backend):
    unit, query, history = problem(activation=activation)
    table = torch.nn.Parameter(torch.randn(1000, 16, device="cuda"))
    counts = torch.ones(1000, dtype=torch.int64, device="cuda")
    ids = torch.randint(1, 1000, (300,), device="cuda")
    optimizer = SparseAdagrad([table], lr=0.1)

    def step():
        gradients(unit(query, history), unit, query, history)
        torch.autograd.grad(dk.mba_penalty(table, ids, counts, 0.1, sparse=True), table)
        table.grad = torch.sparse_coo_tensor(
            ids[None], torch.ones(300, 16, device="cuda"), table.shape, check_invariants=False
        )
        optimizer.step()

    with dk.use_backend(backend):
        step()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_deterministic_algorithms_give_the_same_bits_twice(backend):
    unit, query, history = problem()
    user = torch.randint(0, 64, (500,), device="cuda")
    many = torch.randn(500, 64, device="cuda", requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(unit(many, history, query_to_user=user), unit, many, history) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(first, second, rtol=0, atol=0)
