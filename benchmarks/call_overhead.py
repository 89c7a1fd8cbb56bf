"""The cost of one call of every op on a tiny input, where nothing but the call itself takes time, and where it goes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

import din_kernels as dk
from din_kernels import backends
from din_kernels.benchmarking import harness
from din_kernels.benchmarking.local_activation import EAGER, FUSED, REFERENCE, equal_variants
from din_kernels.benchmarking.shapes import Shape, inputs_of
from din_kernels.commands.console import wide_console
from din_kernels.ops.sparse_update import Hyper, Table, sparse_update

TINY = Shape("tiny", lambda rng: np.array([3, 1, 2, 2]), 3, "4 users, lengths 3, 1, 2, 2, D=8, H=(8, 4)", 8, (8, 4))


# --- the unit beside others -------------------------------------------------------------------------------------------


def beside_others(seconds: float) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row per variant of the unit, in turns; and why others do not run here."""
    made, reasons = equal_variants(inputs_of(TINY), (FUSED, EAGER, REFERENCE))
    rows: dict[str, dict[str, Any]] = {name: {"unit": name} for name in made}
    for what, heading in (("forward", "forward"), ("both", "forward + backward")):
        calls = {name: getattr(variant, what) for name, variant in made.items()}
        timings = harness.interleaved(calls, seconds / 2, rounds=(100, 10_000), warm_up=50)
        for name, timing in timings.items():
            rows[name] |= {f"{heading}, us": timing.median * 1e6, f"p80 of {heading}": timing.p80 * 1e6}
            rows[name] |= {f"of eager, {heading}": timing.median / timings[EAGER].median}
    return list(rows.values()), reasons


# --- where the time goes ----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A tiny call of an op."""

    op: str
    module: str  # of din_kernels.ops, whose `run` goes to the backend
    forward: Callable[[], torch.Tensor | None]
    leaves: list[torch.Tensor]  # what asks for a gradient; none: the op has no backward


def cases(device: str) -> list[Case]:
    """The ops on tensors of `device`."""
    inputs = inputs_of(TINY)
    unit, offsets = inputs.unit.to(device), inputs.history.offsets.to(device)
    query, rows = (each.to(device).requires_grad_() for each in (inputs.query, inputs.history.values))
    x, alpha = torch.randn(8, 8, device=device, requires_grad=True), torch.zeros(8, device=device, requires_grad=True)
    table, ids = torch.randn(16, 8, device=device, requires_grad=True), torch.arange(8, device=device)
    counts, hyper = torch.ones(16, device=device), Hyper(lr=0.1, step=0.1, eps=1e-8, coeff=0.1)
    step = Table(torch.randn(16, 8, device=device), [torch.zeros(16, device=device)], ids, x.detach(), hyper, counts)
    return [
        Case(
            "unit",
            "local_activation.attend",
            lambda: unit(query, dk.Jagged(rows, offsets)),
            [query, rows, *unit.parameters()],
        ),
        Case("dice", "dice", lambda: dk.dice(x, alpha, training=True)[0], [x, alpha]),
        Case("penalty", "mba_penalty", lambda: dk.mba_penalty(table, ids, counts, 0.1, sparse=True), [table]),
        Case("sparse step", "sparse_update", lambda: sparse_update([step], "rowwise_adagrad"), []),
    ]


class Watches:
    """Seconds in some functions since `clear`."""

    def __init__(self):
        self.taken: dict[str, float] = {}

    def clear(self) -> None:
        self.taken.clear()

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time added under `name`."""

        def watched(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.taken[name] = self.taken.get(name, 0.0) + time.perf_counter() - begin

        return watched


def compiled_functions(backend: str, op: str) -> list[tuple[Any, str]]:
    """(module, name) of the functions that a backend's Python calls for an op, where they can be told apart."""
    if backend == "cpu":
        made = importlib.import_module("din_kernels._cpu")
    elif backend == "cuda":
        made = importlib.import_module("din_kernels.backends.cuda").compiled()
    else:
        return []
    return [(made, name) for name in dir(made) if name.startswith(op) and not name.endswith("workspace")]


@contextlib.contextmanager
def watching(watches: Watches, case: Case, backend: str) -> Iterator[None]:
    """Within, the parts of a call are timed."""
    ops = importlib.import_module(f"din_kernels.ops.{case.module}")
    op = case.module.partition(".")[0]
    kernels = backends.module(backend, op)
    parts = [(ops, "run", "run"), (backends, "select", "choice"), (kernels, "forward", "kernels")]
    if case.leaves:
        parts.append((kernels, "backward", "kernels back"))
    parts += [(made, name, "compiled") for made, name in compiled_functions(backend, op)]
    with contextlib.ExitStack() as stack:
        for where, name, watch in parts:
            stack.enter_context(mock.patch.object(where, name, watches.of(watch, getattr(where, name))))
        yield


def parts_of(taken: dict[str, float], whole: float, split: bool) -> dict[str, float | None]:
    """Microseconds of one call by where they go; `split`: the compiled call can be told apart.

    checks: modules, checks and what makes the call of them; choice: of the backend; op: straight to the backend or by
    torch's dispatcher, and autograd; backend: its Python; compiled: what that calls.
    """
    run, choice, compiled = taken["run"], taken["choice"], taken.get("compiled", 0.0)
    kernels = taken["kernels"] + taken.get("kernels back", 0.0)
    # The backward is of autograd's engine, whose time is the machinery's as well.
    machinery = run - taken["kernels"] + taken.get("engine", 0.0) - taken.get("kernels back", 0.0)
    found = {
        "checks": whole - run - choice - taken.get("engine", 0.0),
        "choice": choice,
        "op": machinery,
        "backend": kernels - compiled,
        "compiled": compiled if split else None,
    }
    return {name: None if seconds is None else seconds * 1e6 for name, seconds in found.items()}


def where_it_goes(case: Case, backend: str, backward: bool, seconds: float) -> dict[str, Any]:
    """A row: the time of a call and its parts, each the median over calls. Watches take 1 us of every part."""
    watches = Watches()
    split = bool(compiled_functions(backend, case.module.partition(".")[0]))

    def call():
        with torch.set_grad_enabled(backward):
            found = case.forward()
        if backward:
            begin = time.perf_counter()
            torch.autograd.grad(found.sum(), case.leaves)
            watches.taken["engine"] = time.perf_counter() - begin

    wholes, parts, begin = [], [], time.perf_counter()
    with backends.use_backend(backend), watching(watches, case, backend):
        while len(wholes) < 50 or (time.perf_counter() - begin < seconds and len(wholes) < 5000):
            watches.clear()
            start = time.perf_counter()
            call()
            wholes.append(time.perf_counter() - start)
            parts.append(parts_of(watches.taken, wholes[-1], split))
            if backends.device_of(backend) == "cuda":
                torch.cuda.synchronize()  # or calls wait for room in the queue
    kept = slice(len(wholes) // 10, None)  # the first compile and settle
    row: dict[str, Any] = {"call": case.op, "of": backend, "pass": "forward + backward" if backward else "forward"}
    row["all, us"] = statistics.median(wholes[kept]) * 1e6
    for name in parts[0]:
        values = [each[name] for each in parts[kept]]
        row[name] = None if values[0] is None else statistics.median(values)
    return row


def all_parts(seconds: float) -> list[dict[str, Any]]:
    """A row per op, backend that runs here, and pass."""
    rows = []
    names = [name for name, reason in backends.available().items() if reason is None and name != "reference"]
    for name in names:
        for case in cases(backends.device_of(name)):
            for backward in (False, True) if case.leaves else (False,):
                rows.append(where_it_goes(case, name, backward, seconds / 7 / len(names)))
    return rows


# --- launches of Triton -----------------------------------------------------------------------------------------------


def launches(seconds: float) -> list[dict[str, Any]]:
    """A row per kernel of a sparse step: a launch by Triton itself, and by `backends/triton/launch.py`."""
    from din_kernels.backends.triton import sparse_update as kernels
    from din_kernels.backends.triton.launch import launch

    case, seen = cases("cuda")[-1], []
    with mock.patch.object(kernels, "launch", lambda *given: seen.append(given)), backends.use_backend("triton"):
        case.forward()
    rows = []
    for kernel, grid, args, constants, options in seen:

        def by_triton(kernel=kernel, grid=grid, args=args, given=constants | options):
            kernel[grid](*args, **given)

        def by_launch(given=(kernel, grid, args, constants, options)):
            launch(*given)

        ways = {"Triton": by_triton, "launch.py": by_launch}
        timings = harness.interleaved(ways, seconds / len(seen), rounds=(100, 5000), warm_up=20)
        row = {f"{name}, us": timing.median * 1e6 for name, timing in timings.items()}
        rows.append({"kernel": kernel.fn.__name__} | row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="timed seconds of every table")
    harness.add_save(parser)
    options = parser.parse_args()
    console = wide_console()
    rows, reasons = beside_others(options.seconds)
    parts = all_parts(options.seconds)
    console.print(harness.table(f"one call: {TINY.about}", rows))
    console.print(harness.table("where the time of one call goes, us", parts))
    absent = backends.unavailable("triton")
    if absent is None and backends.device_of("triton") == "cuda" and torch.cuda.is_available():
        console.print(harness.table("one launch of a Triton kernel", launches(options.seconds)))
    for name, reason in reasons.items():
        console.print(f"{name} does not run here: {reason}", soft_wrap=True)
    for name, reason in backends.available().items():
        if reason is not None:
            console.print(f"backend {name} does not run here: {reason}", soft_wrap=True)
    if options.save:
        harness.save(options.save, "call_overhead", TINY.name, rows, parts=parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
