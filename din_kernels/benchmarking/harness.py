"""Timing of several variants side by side, and the record of what was measured, where and when.

A benchmark asserts equality first (`require_equal`), times all variants in one process in turns (`interleaved`), so
that drift of the machine meets all of them, prints its rows (`table`) and keeps them with machine, versions and commit
(`save`).
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table

from din_kernels import config, files
from din_kernels.environment import versions
from din_kernels.verification import compared

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


class Timing(NamedTuple):
    """Seconds of one call: percentiles over `rounds` calls."""

    p20: float
    median: float
    p80: float
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[], Any]], seconds: float = 10.0, rounds: tuple[int, int] = (5, 200), warm_up: int = 2
) -> dict[str, Timing]:
    """Times every call once per round, in an order drawn anew for each: what ran before leaves its data in the caches.

    Args:
        calls: what to time, by name.
        seconds: time for all rounds together, warm-up not counted.
        rounds: least and most rounds.
        warm_up: rounds before, not timed (threads start, caches and allocators settle).

    Returns:
        A `Timing` by name.
    """
    for _ in range(warm_up):
        for call in calls.values():
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    begin, done, draw = time.perf_counter(), 0, random.Random(0)
    while done < rounds[0] or (done < rounds[1] and time.perf_counter() - begin < seconds):
        for name in draw.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            taken[name].append(time.perf_counter() - start)
        done += 1
    return {name: timing_of(values) for name, values in taken.items()}


def keep_freed_memory() -> None:
    """Freed memory stays with this process: from here on glibc does not trim its heap, nor maps large blocks apart.

    By default tensors of many megabytes come from fresh memory in every call or in none, depending on their size and
    on what else lies on the heap, and a page fault per 4 KB can cost more than a kernel does. Other allocators keep
    memory anyway.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(parameter, 2**30)


def timing_of(values: Sequence[float]) -> Timing:
    """Percentiles of measured seconds."""
    p20, _, _, p80 = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else [values[0]] * 4
    return Timing(p20, statistics.median(values), p80, len(values))


def sgemm_call(size: int = 2048) -> tuple[Callable[[], Any], int]:
    """A call of a float32 matmul `[size, size]` and its operations: what this machine can do."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    return lambda: torch.mm(a, b, out=out), 2 * size**3


def require_equal(
    variant: str,
    found: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    exact: Mapping[str, torch.Tensor],
    allowed: float = 1.0,
) -> float:
    """Holds a variant to the reference by the bounds of `din_kernels.verification`.

    Args:
        variant: named in the error.
        found: the variant's tensors by name; a gradient's name starts with "grad".
        own: the reference's in the same dtype.
        exact: the reference's in float64.
        allowed: times the bound; a peer that adds up in another order than the reference may need more than 1.

    Returns:
        The largest error over its bound.

    Raises:
        AssertionError: an error beyond `allowed` times the bound, or a NaN.
    """
    worst = 0.0
    for each in compared(found, own, exact, next(iter(found.values())).dtype):
        if not each.ratio <= allowed:
            raise AssertionError(
                f"{variant}: {each.tensor} must be within {allowed * each.bound:.2e} of the reference, "
                f"got an error of {each.error:.2e}"
            )
        worst = max(worst, each.ratio)
    return worst


def machine() -> dict[str, str]:
    """What a result must say about where, with what and when it was measured."""
    return {
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
        **{name: value for name, value in versions()},
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    name = found.get("model name", platform.machine())
    return name if re.search(r"\d", name) else f"{name} (family {found.get('cpu family')}, model {found.get('model')})"


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    given = config.commit()
    if given is not None or shutil.which("git") is None:
        return given or "unknown"
    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "din_kernels", "benchmarks/*.py")
    return f"{commit} with changes" if changed else commit or "unknown"


def add_save(parser: argparse.ArgumentParser) -> None:
    """The option --save, for `save`."""
    about = "keep the results as JSON; default folder: benchmarks/results of the checkout"
    parser.add_argument("--save", type=Path, nargs="?", const=RESULTS, metavar="FOLDER", help=about)


def save(folder: Path, benchmark: str, case: str, rows: list[dict[str, Any]], **more: Any) -> Path:
    """Writes `folder/<machine>/<benchmark>-<case>.json`: the machine, the command line, `more`, and the rows."""
    about = machine()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{about['cpu']} {about['cores']} cores".lower()).strip("-")
    path = folder / slug / f"{benchmark}-{case}.json"
    command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    content = {"benchmark": benchmark, "case": case, "command": command, "machine": about, **more, "rows": rows}
    files.write_json(path, content)
    return path


def load(folder: Path = RESULTS) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Kept results by (machine's folder, benchmark, case)."""
    found = {}
    for path in sorted(folder.glob("*/*.json")):
        content = json.loads(path.read_text())
        found[path.parent.name, content["benchmark"], content["case"]] = content
    return found


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Rows as a table with the columns of the first; a number has three significant digits, None is blank."""
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    cells = [[_cell(row.get(name)) for name in rows[0]] for row in rows]
    for at, (name, first) in enumerate(rows[0].items()):
        widest = max(len(each[at]) for each in cells)  # a heading may wrap, a number is never cut
        made.add_column(name, justify="left" if isinstance(first, str) else "right", min_width=widest)
    for each in cells:
        made.add_row(*each)
    return made


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
        return f"{value:.{digits}f}"
    return str(value)
