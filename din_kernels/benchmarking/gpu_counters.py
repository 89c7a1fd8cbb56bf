"""What Nsight Compute and the sanitizer say of our kernels, and of no other: names, commands, and their output read."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import din_kernels

TRITON = Path(din_kernels.__file__).parent / "backends" / "triton"
CUDA = Path(din_kernels.__file__).parents[1] / "csrc" / "cuda"
METRICS = {
    "us": "gpu__time_duration.sum",
    "warp instructions": "smsp__inst_executed.sum",
    "instructions a cycle": "sm__inst_executed.avg.per_cycle_active",
    "warps active, %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "DRAM, %": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "DRAM, MB": "dram__bytes.sum",
    "registers": "launch__registers_per_thread",
    "long scoreboard": "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "short scoreboard": "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio",
    "wait": "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",
    "barrier": "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
}
SCALES = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}
BYTES = {"byte": 1e-6, "Kbyte": 1e-3, "Mbyte": 1.0, "Gbyte": 1e3}


def own_kernels() -> list[str]:
    """Names of the kernels in our sources."""
    found = set()
    for path in TRITON.rglob("*.py"):
        found |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE))
    for path in CUDA.rglob("*.cu*") if CUDA.is_dir() else ():
        found |= set(
            re.findall(r"__global__[^;{]*?\b(\w+)\s*\(", re.sub(r"__launch_bounds__\([^)]*\)", "", path.read_text()))
        )
    return sorted(found)


def ncu_command(ncu: str, run: Sequence[str], launches: int = 24) -> list[str]:
    """`run` under Nsight Compute, our kernels alone, one line per launch and metric."""
    names = "regex:^(" + "|".join(own_kernels()) + ")$"
    which = ["--kernel-name-base", "function", "--kernel-name", names, "--launch-count", str(launches)]
    output = ["--csv", "--page", "raw", "--metrics", ",".join(METRICS.values())]
    return [ncu, "--clock-control", "none", *which, *output, *run]


def counted(output: str) -> list[dict[str, Any]]:
    """A row per kernel from Nsight Compute's CSV: the first launch of each name and launch size."""
    lines = output.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    table = list(csv.DictReader(io.StringIO("\n".join(line for line in lines[start:] if line.startswith('"')))))
    units = table[0]
    rows: dict[Any, dict[str, Any]] = {}
    for line in table[1:]:
        row: dict[str, Any] = {"kernel": line["Kernel Name"]}
        for name, metric in METRICS.items():
            text = line.get(metric, "").replace(",", "")
            if text:
                unit = units.get(metric, "")
                scale = SCALES.get(unit, 1.0) if name == "us" else BYTES.get(unit, 1.0) if name == "DRAM, MB" else 1.0
                row[name] = float(text) * scale
        rows.setdefault((row["kernel"], line.get("Grid Size"), line.get("Block Size")), row)
    return list(rows.values())


def findings(output: str) -> dict[str, Any]:
    """Reports of compute-sanitizer: how many in our kernels, with the first of them, and in others, by kernel."""
    ours, first = 0, None
    others: dict[str, int] = {}
    names = set(own_kernels())
    for report in re.split(
        r"^========= (?=Invalid|Error|Race|Warning: Race|Uninitialized|Misaligned|Barrier)", output, flags=re.MULTILINE
    )[1:]:
        found = re.search(r"\bat (?:0x[0-9a-f]+ in )?(?:void )?([\w:<>, ]+?)(?:\(|\+0x)", report)
        name = re.split(r"[<(]", found[1])[0].split("::")[-1].strip() if found else "unknown"
        if any(name == own or own in name for own in names):
            ours, first = ours + 1, first or report[:1500]
        else:
            others[name] = others.get(name, 0) + 1
    return {"in ours": ours, "in others": others, **({"first": first} if first else {})}
