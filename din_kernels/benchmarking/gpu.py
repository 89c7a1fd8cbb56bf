"""The house shapes on a GPU: the unit by each backend beside what users write on the padded batch, and a sparse step.

Times are device events around each call, the cache flushed in between, all variants in turns; memory is what torch's
allocator counts beyond what lay there before.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from din_kernels.backends import use_backend
from din_kernels.backends.reference.local_activation import padded_unit
from din_kernels.benchmarking import gpu_profile
from din_kernels.benchmarking.harness import require_equal
from din_kernels.benchmarking.local_activation import (
    COMPILED,
    EAGER,
    FOLDED,
    allowed_error,
    folded_padded_unit,
    reference_results,
)
from din_kernels.benchmarking.shapes import Inputs, Shape, inputs_of, work
from din_kernels.jagged import Jagged
from din_kernels.optim import MBA, SparseAdam, SparseRowWiseAdagrad

Call = Callable[[], Any]
ROUNDS = 3
GRAPH = "forward, CUDA graph"
TABLE, LARGE_TABLE = (1_000_000, 64, 52_000), (10_000_000, 64, 1_638_400)  # rows, D, ids of a batch
FBGEMM, SPARSE_ADAM, ALONE = "FBGEMM TBE, without MBA", "torch.optim.SparseAdam", "gather and backward alone"


def on_gpu(inputs: Inputs) -> Inputs:
    """The inputs of a house shape on the current GPU."""
    history = Jagged(inputs.history.values.cuda(), inputs.history.offsets.cuda())
    user = None if inputs.query_to_user is None else inputs.query_to_user.cuda()
    return inputs._replace(
        unit=inputs.unit.cuda(), query=inputs.query.cuda(), history=history, query_to_user=user, grad=inputs.grad.cuda()
    )


# --- timing -----------------------------------------------------------------------------------------------------------


def device_times(call: Call) -> list[float]:
    """Milliseconds of each of the calls that fit into a tenth of a second."""
    from triton.testing import do_bench

    return do_bench(call, warmup=20, rep=100, return_mode="all")


def interleaved(calls: Mapping[str, Call]) -> dict[str, dict[str, float]]:
    """Median, p20 and p80 in ms by name, of all calls of ROUNDS turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken[name] += device_times(call)
    return {name: _percentiles(times) for name, times in taken.items()}


def timed(calls: Mapping[str, Call], ours: Sequence[str]) -> dict[str, dict[str, float]]:
    """`interleaved`, with "ratio" to the fastest of ours where one of them is among the calls."""
    times = interleaved(calls)
    best = min((times[name]["median_ms"] for name in ours if name in times), default=None)
    return {name: row if best is None else row | {"ratio": row["median_ms"] / best} for name, row in times.items()}


def _percentiles(times: list[float]) -> dict[str, float]:
    p20, _, _, p80 = statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else times * 4
    return {"median_ms": statistics.median(times), "p20_ms": p20, "p80_ms": p80}


def peak_mb(call: Call) -> float:
    """Megabytes that one call allocates at most, its results among them."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def bytes_ms(count: float) -> float:
    """The least time in which `count` bytes are read or written, at the rate of a copy on this machine."""
    source = torch.randn(2**28, device="cuda")  # 1 GiB, more than any cache
    return statistics.median(device_times(source.clone)) * count / (2 * source.nbytes)


def floor_ms(inputs: Inputs) -> dict[str, float]:
    """The least time at this machine's own rates: the history's bytes once, and the folded products."""
    dtype = inputs.query.dtype
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=dtype)
    product = statistics.median(device_times(lambda: a @ b))
    return {"bytes": bytes_ms(inputs.history.values.nbytes), "products": product * work(inputs) / (2 * 8192**3)}


# --- the unit ---------------------------------------------------------------------------------------------------------


def variants(inputs: Inputs, backends: Sequence[str]) -> dict[str, tuple[Call, Call]]:
    """(forward, forward + backward) by name: ours per backend, and what users write on the padded batch."""
    unit = inputs.unit
    parameters = list(unit.parameters())
    device = inputs.query.device
    user = torch.arange(len(inputs.history), device=device) if inputs.query_to_user is None else inputs.query_to_user
    with torch.no_grad():
        padded = inputs.history.to_padded()[user]
        mask = torch.arange(padded.shape[1], device=device) < inputs.history.lengths()[user, None]
    options = {
        "features": unit.features,
        "activation": unit.activation,
        "params": unit._activation_params(),
        "normalize": unit.normalize,
        "scale": unit.scale,
    }
    weights, biases = [layer.weight for layer in unit.linears], [layer.bias for layer in unit.linears]

    def ours(name):
        def run(query, rows):
            with use_backend(name, ops=("local_activation",)):
                return unit(query, Jagged(rows, inputs.history.offsets), query_to_user=inputs.query_to_user)

        return run, inputs.history.values

    def theirs(function):
        return lambda query, rows: function(query, rows, mask, weights, biases, **options), padded

    made = {name: ours(name) for name in backends}
    made[EAGER] = theirs(padded_unit)
    made[COMPILED] = theirs(torch.compile(padded_unit, dynamic=False))
    made[FOLDED] = theirs(torch.compile(folded_padded_unit, dynamic=False))

    def calls(run, rows):
        def forward():
            with torch.no_grad():
                return run(inputs.query, rows)

        def both():
            leaves = [inputs.query.detach().requires_grad_(), rows.detach().requires_grad_()]
            pooled = run(*leaves)
            return pooled, torch.autograd.grad(pooled, [*leaves, *parameters], inputs.grad)

        return forward, both

    return {name: calls(*each) for name, each in made.items()}


def compile_all(shape: Shape, backends: Sequence[str]) -> None:
    """Runs every variant that compiles once, so that compiled code lies in Triton's and torch's caches on disk."""
    for name, calls in variants(on_gpu(inputs_of(shape)), backends).items():
        for call in calls if name != EAGER else ():
            call()


def benchmark(shape: Shape, deadline: float, backends: Sequence[str]) -> dict[str, Any]:
    """One house shape: rows by variant, ratios to our fastest, and the share of the floor.

    Forward and backward are timed as users call them, launches and Python included; the forward also as the replay of a
    CUDA graph, the kernels alone, which is what the floor is compared with. A backend of ours is held to the reference
    first. A variant that fails is in "skipped" with the reason, and so is
    what begins after `deadline` (of time.monotonic).
    """
    torch._dynamo.reset()
    inputs = on_gpu(inputs_of(shape))
    result: dict[str, Any] = {"about": shape.about, "dtype": str(shape.dtype), "variants": {}, "skipped": {}}
    exact, own = (reference_results(inputs, dtype) for dtype in (torch.float64, shape.dtype))
    runs: dict[str, tuple[Call, Call]] = {}
    for name, (forward, both) in variants(inputs, backends).items():
        if time.monotonic() > deadline:
            result["skipped"][name] = "no time left"
            continue
        try:
            row: dict[str, Any] = {}
            if name in backends:
                row["error over bound"] = _error(name, inputs, both, own, exact)
            for what, call in (("forward", forward), ("both", both)):
                call()
                row[what] = {"peak_mb": peak_mb(call)}
        except Exception as error:  # a peer out of memory, or a wrong result of ours: neither may hide the other rows
            result["skipped"][name] = reason_of(error)
            torch.cuda.empty_cache()
        else:
            result["variants"][name], runs[name] = row, (forward, both)
    graphs, reasons = captured_all({name: forward for name, (forward, _) in runs.items()})
    result["not captured"] = reasons
    calls = {
        "forward": {name: forward for name, (forward, _) in runs.items()},
        GRAPH: graphs,
        "both": {name: both for name, (_, both) in runs.items()},
    }
    for what, each in calls.items():
        for name, row in timed(each, backends).items():
            result["variants"][name].setdefault(what, {}).update(row)
    for name, (forward, both) in runs.items():
        for what, call in (("forward", forward), ("both", both)):
            if time.monotonic() < deadline:
                # A profile takes a third of a second: ours alone.
                more = gpu_profile.profiled(call) if name in backends else {"host_ms": gpu_profile.host_ms(call)}
                result["variants"][name][what] |= more
    ours = [result["variants"][name] for name in backends if name in result["variants"]]
    if ours:
        result["floor_ms"] = floor_ms(inputs)
        best = min(row.get(GRAPH, row["forward"])["median_ms"] for row in ours)
        result["share of floor"] = max(result["floor_ms"].values()) / best
    return result


def reason_of(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _error(name, inputs, both, own, exact) -> float:
    pooled, (query, history, *rest) = both()
    found = {"pooled": pooled.detach(), "grad history": history, "grad query": query}
    found |= {f"grad {key}": grad for (key, _), grad in zip(inputs.unit.named_parameters(), rest, strict=True)}
    return require_equal(name, found, own, exact, allowed_error(inputs))


def captured_all(calls: Mapping[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """Replays by name, and why the others cannot be captured."""
    graphs, reasons = {}, {}
    for name, call in calls.items():
        try:
            graphs[name] = captured(call)
        except Exception as error:
            reasons[name] = reason_of(error)
    return graphs, reasons


def captured(call: Call) -> Call:
    """The replay of a CUDA graph of `call`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


# --- a step of row-wise Adagrad ---------------------------------------------------------------------------------------


def sparse_steps(backends: Sequence[str], device: str = "cuda", table: tuple[int, int, int] = TABLE) -> dict[str, Call]:
    """Gather, backward and step by name: ours with MBA per backend, row-wise Adagrad under the backend's name and Adam;
    torch's SparseAdam without MBA; FBGEMM's table without it where it is installed."""
    rows, dim, entries = table
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(rows, dim, generator=generator, device=device)
    # Zipf with exponent 1: most ids come from the head of the table.
    ids = (rows ** torch.rand(entries, generator=generator, device=device)).long().clamp(max=rows - 1)
    grad = torch.randn(entries, dim, generator=generator, device=device)
    counts = torch.randint(1, 50, (rows,), generator=generator, device=device)
    embedding = torch.nn.Embedding.from_pretrained(weight, freeze=False, sparse=True)

    def step_of(optimizer, name: str | None = None) -> Call:
        def step():
            embedding.zero_grad()
            embedding(ids).backward(grad)
            if optimizer is not None:
                with contextlib.nullcontext() if name is None else use_backend(name, ops=("sparse_update",)):
                    optimizer.step()

        return step

    steps = {}
    for name in backends:
        steps[name] = step_of(SparseRowWiseAdagrad([embedding.weight], lr=0.01, mba=MBA(0.01, counts)), name)
        steps[f"{name}, Adam"] = step_of(SparseAdam([embedding.weight], lr=0.01, mba=MBA(0.01, counts)), name)
    steps[SPARSE_ADAM] = step_of(torch.optim.SparseAdam([embedding.weight], lr=0.01))
    steps[ALONE] = step_of(None)
    try:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )
    except (ImportError, OSError):  # not there, or built for another torch
        return steps
    place = (
        (EmbeddingLocation.HOST, ComputeDevice.CPU)
        if device == "cpu"
        else (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
    )
    fbgemm = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, *place)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.01,
        eps=1e-8,
    )
    offsets = torch.arange(entries + 1, device=device)
    steps[FBGEMM] = lambda: fbgemm(ids, offsets).backward(grad)
    return steps


def sparse(backends: Sequence[str], table: tuple[int, int, int] = TABLE) -> dict[str, Any]:
    """Times, kernels and memory of `sparse_steps`; ratios to our fastest row-wise Adagrad."""
    rows: dict[str, dict[str, Any]] = {}
    runs = {}
    for name, step in sparse_steps(backends, table=table).items():
        try:
            step()
            rows[name] = {"peak_mb": peak_mb(step)}
        except Exception as error:
            rows[name] = {"skipped": reason_of(error)}
        else:
            runs[name] = step
    for name, found in timed(runs, backends).items():
        rows[name] |= found | gpu_profile.profiled(runs[name])
    return {"about": "row-wise Adagrad with MBA, table {} x {}, {} ids".format(*table), "variants": rows}
