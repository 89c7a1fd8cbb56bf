"""Finds the unit's tile shapes on this machine's GPU and stores them with the package, as what its chip overrides.

    python tools/triton_search.py [--dry-run]

For each kernel and element size, candidates are compiled in several processes first, then timed one after the other on
a house shape that takes that path, as replays of a CUDA graph: what Python costs per call is more than most
differences. A candidate that does not compile or launch is left out, and the fastest is kept where it beats the stored
one by more than 2 %. Last comes the average length from which 16-bit rows are folded.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from din_kernels import files
from din_kernels.backends import unavailable, use_backend
from din_kernels.backends.triton import chips
from din_kernels.backends.triton.local_activation.memory import FORWARD, KINDS
from din_kernels.benchmarking.gpu import on_gpu
from din_kernels.benchmarking.gpu_search import configured, forget
from din_kernels.benchmarking.shapes import SHAPES, Inputs, Shape, inputs_of

CONFIGS = Path(chips.__file__).parent / "configs" / "local_activation.json"
# Element size and path: a house shape, and in which dtype.
PATHS = {
    ("16 bit", "folded"): ("gpu_train", torch.bfloat16),
    ("16 bit", "grouped"): ("industrial", torch.bfloat16),
    ("32 bit", "folded"): ("uniform100", torch.float32),
}
NEVER = 10**9  # behaviours on average from which rows are folded
LENGTHS = (8, 12, 16, 24, 32, 48, 64)


def candidates(path: str) -> list[dict[str, int]]:
    """Tile shapes, warps and stages worth a try."""
    tiles = [(1, length) for length in (16, 32, 64, 128)] if path == "folded" else [(2, 8), (4, 8), (8, 8), (4, 16)]
    return [
        {"group": group, "length": length, "num_warps": warps, "num_stages": stages}
        for (group, length), warps, stages in itertools.product(tiles, (2, 4, 8), (1, 2, 3))
    ]


def call_of(inputs: Inputs, backward: bool) -> Callable[[], Any]:
    """Forward, or forward and backward, on the Triton backend."""
    unit, history, grad = inputs.unit, inputs.history, inputs.grad

    def forward():
        with torch.no_grad(), use_backend("triton"):
            return unit(inputs.query, history)

    def both():
        leaves = [inputs.query.detach().requires_grad_(), history.values.detach().requires_grad_()]
        with use_backend("triton"):
            pooled = unit(leaves[0], type(history)(leaves[1], history.offsets))
        return torch.autograd.grad(pooled, [*leaves, *unit.parameters()], grad)

    return both if backward else forward


@functools.cache
def inputs_for(shape: str, dtype: torch.dtype) -> Inputs:
    """A house shape on the GPU, in `dtype`."""
    inputs = on_gpu(inputs_of(SHAPES[shape]))
    history = type(inputs.history)(inputs.history.values.to(dtype), inputs.history.offsets)
    query, grad = inputs.query.to(dtype), inputs.grad.to(dtype)
    return inputs._replace(unit=inputs.unit.to(dtype), query=query, history=history, grad=grad)


def milliseconds(call: Callable[[], Any]) -> float:
    """Median of the replays of a CUDA graph."""
    from triton.testing import do_bench_cudagraph

    with torch.cuda.stream(torch.cuda.Stream()):
        return do_bench_cudagraph(call, rep=50, return_mode="median")


def key_of(path: str, kind: str) -> str:
    """What a stored configuration calls the tile of a path for one of memory.KINDS."""
    return path if kind == FORWARD else f"{path}, {kind}"


def tries() -> list[tuple[str, str, str, dict[str, int] | None]]:
    """(element size, path, kind, candidate) of everything that is timed; None stands for what is stored."""
    return [
        (size, path, kind, candidate)
        for (size, path), kind in itertools.product(PATHS, KINDS)
        for candidate in [None, *candidates(path)]
    ]


def run_try(chip: str, size: str, path: str, kind: str, candidate, measure: Callable) -> Any:
    """`measure` of the path's call under a candidate; None where it does not compile or launch."""
    own: dict[str, Any] = {"fold_from": 0 if path == "folded" else NEVER}  # whatever the lengths, this path
    key = key_of(path, kind)
    if candidate is not None:
        if candidate["group"] * candidate["length"] > chips.most_rows(chip):
            return None
        own[key] = candidate
    with configured(chip, {size: own}):
        try:
            return measure(call_of(inputs_for(*PATHS[size, path]), kind != FORWARD))
        except Exception as error:  # too much shared memory, say
            print(f"{size} {key} {candidate}: {type(error).__name__}", flush=True)
            return None


def compile_part(chip: str, part: int, parts: int) -> None:
    """Runs every parts-th try once: what it compiles stays in Triton's cache."""
    for each in tries()[part::parts]:
        run_try(chip, *each, lambda call: call())


def compile_all() -> None:
    """`compile_part` in as many processes as half the cores."""
    parts = max(1, (os.cpu_count() or 2) // 2)
    script = [sys.executable, str(Path(__file__).resolve()), "--compile"]
    running = [subprocess.Popen([*script, str(part), str(parts)]) for part in range(parts)]
    for process in running:
        process.wait()


def even_lengths(average: int, generator: Any) -> Any:
    """Lengths of as many histories as gpu_train has."""
    return generator.integers(1, 2 * average, 16_384)


def fold_from(chip: str) -> int:
    """The least average length at which 16-bit rows of gpu_train's sizes are faster folded."""
    for length in LENGTHS:
        lengths = functools.partial(even_lengths, length)
        shape = Shape("even", lengths, 2 * length, "", dtype=torch.bfloat16)
        call = call_of(on_gpu(inputs_of(shape)), backward=True)
        times = []
        for first in (0, NEVER):
            with configured(chip, {"16 bit": {"fold_from": first}}):
                call()
                times.append(milliseconds(call))
        print(f"16 bit, {length} behaviours: folded {times[0]:.3f} ms, grouped {times[1]:.3f} ms", flush=True)
        if times[0] < times[1]:
            return length
    return 2 * LENGTHS[-1]


def search(chip: str) -> dict[str, Any]:
    """The chip's configurations: what is stored, with what was found faster."""
    table = json.loads(CONFIGS.read_text())
    found: dict[tuple[str, str], list[tuple[float, Any]]] = {}
    for size, path, kind, candidate in tries():
        time = run_try(chip, size, path, kind, candidate, milliseconds)
        if time is not None:
            found.setdefault((size, key_of(path, kind)), []).append((time, candidate))
    for (size, key), times in found.items():
        stored = next((time for time, candidate in times if candidate is None), float("inf"))
        time, chosen = min(times, key=lambda each: each[0])
        print(f"{size} {key}: {time:.3f} ms with {chosen or 'what is stored'}, stored {stored:.3f} ms", flush=True)
        if chosen is not None and time < 0.98 * stored:
            stored_here = table.setdefault(chip, {}).setdefault(size, {})
            stored_here[key] = stored_here.get(key, {}) | chosen
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="list what would be tried")
    parser.add_argument("--compile", nargs=2, type=int, metavar=("part", "parts"), help="compile a part, time nothing")
    options = parser.parse_args()
    reason = "dry run" if options.dry_run else unavailable("triton")
    if reason is None and not torch.cuda.is_available():
        reason = "torch sees no GPU"
    if reason is not None:
        print(f"skipped: {reason}; would try {len(tries())} candidates for {len(KINDS) * len(PATHS)} tiles")
        return 0
    chip = chips.chip(torch.device("cuda", torch.cuda.current_device()))
    if options.compile:
        compile_part(chip, *options.compile)
        return 0
    compile_all()
    table = search(chip)
    files.write_json(CONFIGS, table, indent=4)
    chips.stored.cache_clear()
    forget()
    table.setdefault(chip, {}).setdefault("16 bit", {})["fold_from"] = fold_from(chip)
    files.write_json(CONFIGS, table, indent=4)
    return 0


if __name__ == "__main__":
    sys.exit(main())
