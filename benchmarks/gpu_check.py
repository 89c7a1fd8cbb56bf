"""One command for a machine with a GPU: builds, runs the GPU tests, times the house shapes, writes one JSON.

    python3 benchmarks/gpu_check.py [--save FOLDER] [--dry-run]

Our backends beside eager PyTorch on the padded batch, torch.compile of it, and torch.compile of the folded form,
forward and forward + backward, in the shape's own dtype. Equality with the reference is asserted first. It needs no
network: the build uses what is installed, and where nvcc is missing it goes on without the CUDA backend and says so.
`--dry-run`, and a machine without a GPU, list what would run and end with 0.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 480  # for everything; what no longer fits is skipped and listed
DEFAULT = ROOT / "benchmarks" / "results"


def build() -> str | None:
    """Builds the compiled core in place; why the CUDA backend is left out, or None."""
    reason = None if shutil.which("nvcc") else "nvcc is not installed"
    environment = os.environ | ({"DIN_KERNELS_CUDA": "off"} if reason else {})
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
    subprocess.run(command, check=True, env=environment)
    return reason


def run_tests(limit: float) -> dict[str, Any]:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "python_tests"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"passed": False, "summary": f"no end within {limit:.0f} s"}
    return {
        "passed": done.returncode == 0,
        "summary": done.stdout.strip().splitlines()[-1:],
        "output": done.stdout[-4000:],
    }


def run_sanitizer(limit: float) -> dict[str, Any]:
    """The CUDA kernels of the unit under compute-sanitizer, each tool for `limit` seconds at most."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return {"skipped": "compute-sanitizer is not installed"}
    found: dict[str, Any] = {}
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, "-m", "pytest", "-q", "-x",
                   "-m", "gpu", "-k", "all_gradients or long_histories",
                   "python_tests/test_cuda_local_activation.py"]  # fmt: skip
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            found[tool] = {"skipped": f"no end within {limit:.0f} s"}
        else:
            found[tool] = {"passed": done.returncode == 0, "output": done.stdout[-2000:]}
    return found


def on_gpu(inputs):
    """The inputs of a house shape on the GPU."""
    from din_kernels.jagged import Jagged

    history = Jagged(inputs.history.values.cuda(), inputs.history.offsets.cuda())
    user = None if inputs.query_to_user is None else inputs.query_to_user.cuda()
    return inputs._replace(
        unit=inputs.unit.cuda(), query=inputs.query.cuda(), history=history, query_to_user=user, grad=inputs.grad.cuda()
    )


def variants(inputs, backends: list[str]) -> dict[str, tuple]:
    """(forward, forward + backward) by name: ours per backend, and what users write on the padded batch."""
    import torch

    from din_kernels.backends import use_backend
    from din_kernels.backends.reference.local_activation import padded_unit
    from din_kernels.benchmarking.local_activation import folded_padded_unit
    from din_kernels.jagged import Jagged

    unit = inputs.unit
    parameters = list(unit.parameters())
    device = inputs.query.device
    user = torch.arange(len(inputs.history), device=device) if inputs.query_to_user is None else inputs.query_to_user
    lengths = inputs.history.lengths()[user]
    with torch.no_grad():
        padded = inputs.history.to_padded()[user]
        mask = torch.arange(padded.shape[1], device=device) < lengths[:, None]
    options = {"features": unit.features, "activation": unit.activation, "params": unit._activation_params(),
               "normalize": unit.normalize, "scale": unit.scale}  # fmt: skip
    weights, biases = [layer.weight for layer in unit.linears], [layer.bias for layer in unit.linears]

    def ours(name):
        def run(query, rows):
            with use_backend(name, ops=("local_activation",)):
                return unit(query, Jagged(rows, inputs.history.offsets), query_to_user=inputs.query_to_user)

        return run, inputs.history.values

    def theirs(function):
        return lambda query, rows: function(query, rows, mask, weights, biases, **options), padded

    made = {name: ours(name) for name in backends}
    made["padded, eager"] = theirs(padded_unit)
    made["padded, torch.compile"] = theirs(torch.compile(padded_unit, dynamic=False))
    made["folded by hand, padded, torch.compile"] = theirs(torch.compile(folded_padded_unit, dynamic=False))

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


def check_equal(inputs, name: str, both) -> float:
    """Largest error over its bound against the reference; AssertionError beyond 1."""
    import torch

    from din_kernels.benchmarking.harness import require_equal
    from din_kernels.benchmarking.local_activation import reference_results

    pooled, (query, history, *rest) = both()
    found = {"pooled": pooled.detach(), "grad history": history, "grad query": query}
    found |= {f"grad {key}": grad for (key, _), grad in zip(inputs.unit.named_parameters(), rest, strict=True)}
    exact, own = (reference_results(inputs, dtype) for dtype in (torch.float64, inputs.query.dtype))
    return require_equal(name, found, own, exact)


def measure(call) -> dict[str, float]:
    """Milliseconds by device events, and the peak of allocated memory over what lay there before, in MB."""
    import torch
    from triton.testing import do_bench

    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    median, p20, p80 = do_bench(call, warmup=50, rep=300, quantiles=[0.5, 0.2, 0.8])
    return {"median_ms": median, "p20_ms": p20, "p80_ms": p80, "peak_mb": peak / 1e6}


def floor_ms(inputs) -> dict[str, float]:
    """The floor of design 7 at this machine's own rates: bytes of the history once, and the folded products."""
    import torch
    from triton.testing import do_bench

    from din_kernels.benchmarking.shapes import work

    dtype = inputs.query.dtype
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=dtype)
    product = do_bench(lambda: a @ b, warmup=20, rep=100, return_mode="median")
    source = torch.randn(2**28, device="cuda")  # 1 GiB, more than any cache
    copied = do_bench(source.clone, warmup=20, rep=100, return_mode="median")
    bytes_ms = copied * inputs.history.values.nbytes / (2 * source.nbytes)
    return {"bytes": bytes_ms, "products": product * work(inputs) / (2 * 8192**3)}


def benchmark(shape, deadline: float, backends: list[str]) -> dict[str, Any]:
    """One house shape: rows by variant, ratios to our fastest, and the share of the floor."""
    import torch

    from din_kernels.benchmarking.shapes import inputs_of

    torch._dynamo.reset()
    inputs = on_gpu(inputs_of(shape))
    result: dict[str, Any] = {"about": shape.about, "dtype": str(shape.dtype), "variants": {}, "skipped": {}}
    for name, (forward, both) in variants(inputs, backends).items():
        if time.monotonic() > deadline:
            result["skipped"][name] = "no time left"
            continue
        try:
            row: dict[str, Any] = {}
            if name in backends:
                row["error over bound"] = check_equal(inputs, name, both)
            row |= {"forward": measure(forward), "both": measure(both)}
        except Exception as error:  # a peer out of memory, or a wrong result of ours: neither may hide the other rows
            result["skipped"][name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            torch.cuda.empty_cache()
        else:
            result["variants"][name] = row
    result["floor_ms"] = floor_ms(inputs)
    own = [result["variants"][name] for name in backends if name in result["variants"]]
    for what in ("forward", "both") if own else ():
        best = min(row[what]["median_ms"] for row in own)
        for row in result["variants"].values():
            row[what]["ratio"] = row[what]["median_ms"] / best
        if what == "forward":
            result["share of floor"] = max(result["floor_ms"].values()) / best
    return result


def serving_graph(inputs, backend: str) -> dict[str, float]:
    """Microseconds of the forward, replayed from a CUDA graph."""
    import torch
    from triton.testing import do_bench

    forward, _ = variants(inputs, [backend])[backend]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    median, p20, p80 = do_bench(graph.replay, warmup=50, rep=300, quantiles=[0.5, 0.2, 0.8])
    return {"median_us": 1e3 * median, "p20_us": 1e3 * p20, "p80_us": 1e3 * p80}


TABLE = (1_000_000, 64, 52_000)  # rows, D, ids of a batch


def sparse_steps(backends: list[str], device: str, table: tuple[int, int, int] = TABLE) -> dict[str, Any]:
    """Steps of row-wise Adagrad by name: ours with MBA per backend, FBGEMM's table without it where it is installed."""
    import torch

    from din_kernels.backends import use_backend
    from din_kernels.optim import MBA, SparseRowWiseAdagrad

    rows, dim, entries = table
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, dim, generator=generator)
    # Zipf with exponent 1: most ids come from the head of the table.
    ids = (rows ** torch.rand(entries, generator=generator)).long().clamp(max=rows - 1).to(device)
    grad = torch.randn(entries, dim, generator=generator).to(device)
    counts = torch.randint(1, 50, (rows,), generator=generator).to(device)
    steps = {}

    def ours(name):
        embedding = torch.nn.Embedding.from_pretrained(weight.to(device, copy=True), freeze=False, sparse=True)
        optimizer = SparseRowWiseAdagrad(embedding.parameters(), lr=0.01, mba=MBA(0.01, counts))

        def step():
            optimizer.zero_grad()
            embedding(ids).backward(grad)
            with use_backend(name, ops=("sparse_update",)):
                optimizer.step()

        return step

    for name in backends:
        steps[name] = ours(name)
    try:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )
    except ImportError:
        return steps
    fbgemm = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.DEVICE, ComputeDevice.CUDA)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=0.01, eps=1e-8,
    )  # fmt: skip
    offsets = torch.arange(entries + 1, device=device)
    steps["FBGEMM TBE, without MBA"] = lambda: fbgemm(ids, offsets).backward(grad)
    return steps


def sparse(backends: list[str]) -> dict[str, Any]:
    """Times of sparse_steps; ratios to our fastest."""
    rows: dict[str, Any] = {}
    for name, step in sparse_steps(backends, "cuda").items():
        try:
            rows[name] = measure(step)
        except Exception as error:  # one that fails may not hide the others
            rows[name] = {"skipped": f"{type(error).__name__}: {error}"[:300]}
    timed = [rows[name]["median_ms"] for name in backends if "median_ms" in rows[name]]
    for row in rows.values():
        if timed and "median_ms" in row:
            row["ratio"] = row["median_ms"] / min(timed)
    return {"about": "row-wise Adagrad with MBA, table {} x {}, {} ids".format(*TABLE), "variants": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, default=DEFAULT, metavar="FOLDER", help="default: benchmarks/results")
    parser.add_argument("--shapes", nargs="+", metavar="name", help="default: all, gpu_train first")
    parser.add_argument("--dry-run", action="store_true", help="build nothing, time nothing")
    parser.add_argument("--no-build", action="store_true", help="use what is built")
    options = parser.parse_args()
    began = time.monotonic()
    sys.path.insert(0, str(ROOT))
    without_cuda = None
    import torch

    if not options.dry_run and torch.cuda.is_available() and not options.no_build:
        without_cuda = build()
    from din_kernels.backends import available
    from din_kernels.benchmarking.harness import machine
    from din_kernels.benchmarking.shapes import SHAPES, ShapeUnavailable, inputs_of

    names = options.shapes or ["gpu_train", *(name for name in SHAPES if name != "gpu_train")]
    backends = [name for name in ("cuda", "triton") if available()[name] is None]
    reasons = {name: reason for name, reason in available().items() if reason is not None}
    if options.dry_run or not torch.cuda.is_available():
        why = "dry run" if options.dry_run else "torch sees no GPU"
        print(f"skipped: {why}; would time {', '.join(names)}; not available: {json.dumps(reasons)}")
        return 0
    import triton

    result: dict[str, Any] = {
        "machine": machine(), "triton": triton.__version__, "chip": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()), "date": datetime.date.today().isoformat(),
        "without cuda": without_cuda, "unavailable": reasons, "tests": run_tests(180),
        "compute-sanitizer": run_sanitizer(45) if "cuda" in backends else {"skipped": reasons["cuda"]}, "shapes": {},
    }  # fmt: skip
    for name in names:
        if time.monotonic() - began > SECONDS:
            result["shapes"][name] = {"skipped": "no time left"}
            continue
        try:
            result["shapes"][name] = benchmark(SHAPES[name], began + SECONDS, backends)
        except ShapeUnavailable as reason:
            result["shapes"][name] = {"skipped": str(reason)}
        print(name, json.dumps(result["shapes"][name])[:2000], flush=True)
    if "serving" in names and time.monotonic() - began < SECONDS:
        inputs = on_gpu(inputs_of(SHAPES["serving"]))
        result["serving, CUDA graph"] = {}
        for name in backends:
            try:
                result["serving, CUDA graph"][name] = serving_graph(inputs, name)
            except Exception as error:  # reported beside what else was measured
                result["serving, CUDA graph"][name] = {"skipped": f"{type(error).__name__}: {error}"[:300]}
    result["sparse step"] = sparse(backends) if time.monotonic() - began < SECONDS else {"skipped": "no time left"}
    result["seconds"] = time.monotonic() - began
    folder = options.save / "".join(c if c.isalnum() else "-" for c in result["chip"].lower())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {folder / 'gpu_check.json'}")
    wrong = [f"{shape}, {name}" for shape, each in result["shapes"].items()
             for name in each.get("skipped", {}) if name in backends]  # fmt: skip
    wrong += [
        tool for tool, each in result["compute-sanitizer"].items() if tool != "skipped" and not each.get("passed", True)
    ]
    return 0 if result["tests"]["passed"] and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
