"""The parts of tools/gpu_check.py that are timed: what compiles them first, and their results as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from din_kernels.benchmarking import gpu, gpu_dice, gpu_search, gpu_step
from din_kernels.benchmarking.shapes import SHAPES, ShapeUnavailable, inputs_of

LATE = {"skipped": "no time left"}
TABLES = {"sparse step": gpu.TABLE, "sparse step, large": gpu.LARGE_TABLE}


def compilations(parts: Sequence[str], names: Sequence[str]) -> list[str]:
    """What is to be compiled before it is timed, each in a process of its own."""
    found = list(names) if "timings" in parts else []
    found += [f"step {name}" for name in gpu_step.PRECISIONS] if "step" in parts else []
    return found + [part for part in ("dice", "sparse") if part in parts]


def compile_one(name: str, backends: Sequence[str]) -> None:
    """Runs what `compilations` names once."""
    if name == "dice":
        gpu_dice.compile_all(backends)
    elif name == "sparse":
        for step in gpu.sparse_steps(backends).values():
            step()
    elif name.startswith("step "):
        gpu_step.compile_all(backends, name.removeprefix("step "))
    else:
        gpu.compile_all(SHAPES[name], backends)


def run_once(name: str, backends: Sequence[str]) -> None:
    """Forward and backward of ours on a shape, or "dice", for a tool that looks on."""
    if name == "dice":
        made = gpu_dice.variants(gpu_dice.SHAPES[0], torch.bfloat16, backends)
        calls = [made[backend] for backend in backends]
    else:
        variants = gpu.variants(gpu.on_gpu(inputs_of(SHAPES[name])), backends)
        calls = [call for backend in backends for call in variants[backend]]
    for call in calls:
        call()
    torch.cuda.synchronize()


def _timings(names: Sequence[str], backends: Sequence[str], deadline: float) -> Iterator[dict[str, Any]]:
    for name in names:
        try:
            late = time.monotonic() > deadline
            found = LATE if late else gpu.benchmark(SHAPES[name], deadline, backends)
        except ShapeUnavailable as reason:
            found = {"skipped": str(reason)}
        except Exception as error:  # one shape's must not hide the others
            found = {"skipped": gpu.reason_of(error)}
        yield {"rows": [{"shape": name, **found}]}


def results(
    part: str, names: Sequence[str], backends: Sequence[str], deadline: float, candidates: Path | None
) -> Iterator[dict[str, Any]]:
    """What a part measures, as entries of the file of results, each as soon as it is there."""
    if part == "timings":
        yield from _timings(names, backends, deadline)
    elif part == "step":
        yield from ({"step": [row]} for row in gpu_step.benchmark(deadline, backends))
    elif part == "dice":
        yield from ({"dice": [row]} for row in gpu_dice.benchmark(deadline, backends))
    elif part == "sparse":
        for key, table in TABLES.items():
            yield {key: LATE if time.monotonic() > deadline else gpu.sparse(backends, table)}
    else:
        found = []
        for row in gpu_search.search(deadline, gpu_search.candidates(candidates)):
            found.append(row)
            yield {"search": found}
