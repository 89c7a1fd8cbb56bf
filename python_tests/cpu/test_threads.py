"""The compiled core beside other threads, processes and callers: one OpenMP pool, no GIL, fork, NumPy without torch."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import din_kernels as dk
from din_kernels import _cpu

linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")


def problem(users=256, dim=32, seed=0, dtype=torch.float32):
    """A unit and its inputs: lengths 0 .. 63."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 64, (users,), generator=generator)
    history = dk.Jagged.from_lengths(
        torch.randn(int(lengths.sum()), dim, generator=generator, dtype=dtype, requires_grad=True), lengths
    )
    query = torch.randn(users, dim, generator=generator, dtype=dtype, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unit = dk.nn.LocalActivationUnit(dim, dtype=dtype)
    return unit, query, history


def forward_and_gradients(unit, query, history):
    with dk.use_backend("cpu"):
        pooled = unit(query, history)
    return [pooled, *torch.autograd.grad(pooled.sum(), [query, history.values, *unit.parameters()])]


def run(script: str) -> str:
    """Output of a fresh process, which must end well within a minute."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


COUNT = """
import os, torch
from test_threads import problem, forward_and_gradients

def threads():
    return len(os.listdir("/proc/self/task"))

inputs = problem()
torch.set_num_threads(2)
alone = threads()
"""


@linux_only
def test_kernels_run_on_the_threads_that_torch_already_has():
    script = """
torch.randn(4_000_000).exp().sum()  # large enough for every thread
after_torch = threads()
forward_and_gradients(*inputs)
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libiomp" in line}
print(after_torch - alone, threads() - after_torch, len(runtimes))
"""
    by_torch, by_kernels, runtimes = map(int, run(COUNT + script).split())
    assert by_torch >= 1
    assert by_kernels == 0
    assert runtimes == 1


@linux_only
def test_a_kernel_uses_as_many_threads_as_torch_is_set_to():
    script = """
with torch.no_grad():
    inputs[0](*inputs[1:])
print(threads() - alone)
"""
    assert int(run(COUNT + script)) == 1


LENGTHS = {"many short": [3, 0, 17, 64] * 60, "one of 20,000 and many of three": [3] * 200 + [20_000]}
VARIANTS = {
    "sigmoid": {},
    "softmax": {"normalize": "softmax"},
    "outer": {"features": "outer"},
    "dice in training": {"activation": "dice"},
    "candidates that share histories": {"shared": True},
    "rows by id": {"gather": True},
    "bf16": {"dtype": torch.bfloat16},
}


def results(lengths, shared=False, gather=False, dtype=torch.float32, **options):
    """Output and gradients of a call whose history rows are 12 wide."""
    generator = torch.Generator().manual_seed(0)
    unit = dk.nn.LocalActivationUnit(12, (20, 7), **options)
    for parameter in unit.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    offsets = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    query_to_user = torch.randint(0, len(lengths), (300,), generator=generator) if shared else None
    queries = 300 if shared else len(lengths)
    rows = torch.randn(900 if gather else int(offsets[-1]), 12, generator=generator).to(dtype).requires_grad_()
    query = torch.randn(queries, 12, generator=generator).to(dtype).requires_grad_()
    ids = torch.randint(0, 900, (int(offsets[-1]),), generator=generator)
    history = dk.Gather(ids, rows, offsets) if gather else dk.Jagged(rows, offsets)
    with dk.use_backend("cpu"):
        pooled = unit(query, history, query_to_user=query_to_user)
    grads = torch.autograd.grad(pooled.square().sum(), [query, rows, *unit.parameters()])
    return [pooled, *(grad.coalesce().values() if grad.is_sparse else grad for grad in grads)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_results_do_not_depend_on_the_number_of_threads_bit_for_bit(lengths, variant):
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 4, 7):
            torch.set_num_threads(threads)
            found[threads] = results(LENGTHS[lengths], **VARIANTS[variant])
    finally:
        torch.set_num_threads(before)
    for threads in (2, 4, 7):
        assert all(torch.equal(a, b) for a, b in zip(found[1], found[threads], strict=True))


def test_python_threads_that_call_at_once_get_the_results_of_one():
    cases = [problem(users=64, seed=seed) for seed in range(4)]
    expected = [forward_and_gradients(*case) for case in cases]
    different = []
    start = threading.Barrier(len(cases))

    def repeat(case, wanted):
        start.wait()
        for _ in range(10):
            got = forward_and_gradients(*case)
            different.extend(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if not torch.equal(a, b))

    callers = [threading.Thread(target=repeat, args=both) for both in zip(cases, expected, strict=True)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert different == []


def test_gil_is_released_during_a_call():
    unit, query, history = problem(users=4096, dim=128)
    query, history = query.detach(), dk.Jagged(history.values.detach(), history.offsets)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    woken, stop = [], threading.Event()

    def wake_up():
        while not stop.is_set():
            woken.append(time.perf_counter())
            time.sleep(0.001)

    other = threading.Thread(target=wake_up)
    try:
        with torch.no_grad(), dk.use_backend("cpu"):
            unit(query, history)
            other.start()
            begin = time.perf_counter()
            for _ in range(3):
                unit(query, history)
            end = time.perf_counter()
    finally:
        stop.set()
        other.join()
        torch.set_num_threads(before)
    # Held, the other thread would wake between the calls alone: a handful of times.
    during = sum(begin < moment < end for moment in woken)
    assert during > 10 and during > (end - begin) / 0.02


def test_data_loader_worker_forked_after_a_parallel_region_works():
    script = """
import torch
from test_threads import problem, forward_and_gradients

class Calls(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, seed):
        return forward_and_gradients(*problem(users=32, seed=seed))[0].detach().sum(1)

torch.set_num_threads(2)
here = [Calls()[i] for i in range(4)]  # the pool exists before the fork
loader = torch.utils.data.DataLoader(
    Calls(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=40
)
assert all(torch.equal(a, b) for a, b in zip(loader, here, strict=True))
print("done")
"""
    assert run(script) == "done"


def test_numpy_caller_needs_no_torch():
    script = f"""
import importlib.util, sys
import numpy as np

spec = importlib.util.spec_from_file_location("_cpu", {_cpu.__file__!r})
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)

random = np.random.default_rng(0)
offsets = np.array([0, 3, 3, 8])
users, rows, dim = 3, 8, 5
query, history = random.normal(size=(users, dim)), random.normal(size=(rows, dim))
weight, bias = random.normal(size=(1, 4 * dim)), random.normal(size=1)
begin, length = offsets[:-1].copy(), np.diff(offsets)
pooled = np.full((users, dim), np.nan)
array = lambda values: (values.ctypes.data, str(values.dtype), values.shape)
call = {{
    "query_tables": [array(query)], "query_ids": [], "history_tables": [array(history)], "history_ids": [],
    "begin": array(begin), "length": array(length),
    "row_index": None, "row_mask": None, "query_to_user": None, "pair_begin": None, "total_pairs": 0,
    "weights": [array(weight)], "biases": [array(bias)], "params": [], "eps": [],
    "features": "concat", "activation": "sigmoid", "dice_training": False, "normalize": "none", "scale": 1.0,
}}
result = {{"pooled": array(pooled), "logsumexp": None, "pair_weights": None, "statistics": None}}
core.local_activation_forward(call, result, 2)
q = np.repeat(query, length, axis=0)
scores = np.concatenate([q, history, q - history, q * history], axis=1) @ weight[0] + bias
expected = np.stack([(scores[a:b, None] * history[a:b]).sum(0) for a, b in zip(offsets, offsets[1:])])
np.testing.assert_allclose(pooled, expected, rtol=1e-12, atol=1e-12)
assert "torch" not in sys.modules
"""
    run(script)


FAULTS = """
import ctypes, resource
import torch
from din_kernels.ops.sparse_update import Hyper, Table, sparse_update

ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: every larger block is fresh memory
table = Table(torch.zeros(100_000, 4), [], torch.arange(100_000), torch.ones(100_000, 4), Hyper(lr=0.1, step=0.1))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    sparse_update([table], "sgd")
before = faults()
for _ in range(20):
    sparse_update([table], "sgd")
print(faults() - before)
"""


@linux_only
def test_calls_reuse_their_scratch_instead_of_taking_fresh_memory():
    # The sorted ids alone, 1.6 MB, would cost 400 page faults a call.
    assert int(run(FAULTS)) < 400
