"""Writes the tables of README.md and docs/performance.md and the plot in docs/images from benchmarks/results.

A table stands between `<!-- table: name -->` and `<!-- end -->`. With --check nothing is written, and the exit status
is 1 when a table differs from the results.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from din_kernels import files
from din_kernels.benchmarking import gpu_tables, harness
from din_kernels.benchmarking.gpu_tables import OURS
from din_kernels.benchmarking.local_activation import BUCKETED, COMPILED, COPIES, EAGER, FOLDED, FUSED
from din_kernels.benchmarking.shapes import CPU_SHAPES

PAGES = ("README.md", "docs/performance.md")
PLOT = "docs/images/speed.png"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def of(results: list[dict[str, Any]], benchmark: str) -> list[dict[str, Any]]:
    """The results of one benchmark, house shapes in their order."""
    order = {name: at for at, name in enumerate(CPU_SHAPES)}
    found = [each for each in results if each["benchmark"] == benchmark]
    return sorted(found, key=lambda each: (order.get(each["case"], len(order)), each["case"]))


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def caption(found: list[dict[str, Any]]) -> str:
    """Command, machine, versions, commits and dates of results."""

    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(each["machine"][key] for each in found))

    commands = dict.fromkeys(re.sub(r" --save.*| --seconds \S+", "", each["command"]) for each in found)
    script = next(iter(commands)).split()[1]
    if "chip" in found[0]["machine"]:
        where = f"{values('chip')}, Triton {values('triton')}"
    else:
        isa = values("instruction set").split(" ")[0]
        where = f"{values('cpu')}, {values('cores')} cores, {isa}, {values('threads')} threads"
    return f"`python {script}`, {where}, torch {values('torch')}, {values('date')}, commit {values('commit')}\n"


def by_variant(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in result["rows"]}


def milliseconds(row: dict[str, Any] | None) -> str:
    """Medians: forward / forward + backward."""
    return "" if row is None else " / ".join(_digits(row[f"{what}_ms"][1]) for what in ("forward", "both"))


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _ratios(row: dict[str, Any]) -> str:
    return " / ".join(f"{row[f'{what}_ratio']:.1f}x" for what in ("forward", "both"))


def unit(found: list[dict[str, Any]]) -> str:
    """Milliseconds forward / forward + backward, and ratios."""
    rows = []
    for result in found:
        variants, shape = by_variant(result), result["shape"]
        ours = variants[FUSED]
        rows.append(
            [
                f"`{result['case']}`, D={shape['D']}",
                milliseconds(variants.get(EAGER)),
                milliseconds(variants.get(COMPILED)),
                milliseconds(variants.get(FOLDED)),
                f"**{milliseconds(ours)}**",
                _ratios(variants[COMPILED]),
                _ratios(variants[FOLDED]),
                f"{ours['forward_share']:.2f} / {ours['both_share']:.2f}",
            ]
        )
    heads = [
        "shape",
        "padded, eager",
        "padded, torch.compile",
        "folded by hand, compiled",
        "fused",
        "over compiled",
        "over folded",
        "share of sgemm",
    ]
    return markdown(heads, rows)


# Asked for: times faster than the compiled padded unit, forward and forward + backward.
TARGETS = {
    "uniform100": (10, 7),
    "uniform100_d64": (8, 5),
    "full100": (6, 3.5),
    "real": (40, 25),
    "industrial": (15, 12),
    "long": (6.5, 5),
}


def targets(found: list[dict[str, Any]]) -> str:
    """What was aimed at and what came."""
    rows = []
    for result in found:
        if result["case"] in TARGETS:
            row, asked = by_variant(result)[COMPILED], TARGETS[result["case"]]
            missed = [
                what
                for what, name, target in zip(("forward", "backward"), ("forward", "both"), asked, strict=True)
                if row[f"{name}_ratio"] < target
            ]
            rows.append(
                [f"`{result['case']}`", f"{asked[0]}x / {asked[1]}x", _ratios(row), ", ".join(missed) or "none"]
            )
    return markdown(["shape", "aim", "reached", "missed"], rows)


def peers(found: list[dict[str, Any]]) -> str:
    """The peers that only some shapes have."""
    rows = []
    for result in found:
        variants = by_variant(result)
        for name in (BUCKETED, COPIES):
            if name in variants:
                rows.append(
                    [
                        f"`{result['case']}`",
                        name,
                        milliseconds(variants[name]),
                        milliseconds(variants[FUSED]),
                        _ratios(variants[name]),
                    ]
                )
    return markdown(["shape", "peer", "peer, ms", "fused, ms", "fused is faster"], rows)


def memory(found: list[dict[str, Any]]) -> str:
    """Megabytes beyond inputs and outputs."""
    rows = [
        [f"`{each['case']}`", *(f"{value:.1f}" for value in each["memory_mb"].values())]
        for each in found
        if each["memory_mb"]
    ]
    return markdown(
        ["shape", "peak, MB", "allowed: 1.5 history + 16 MiB", "smallest buffer of [B, T, 4D] or [N, H]"], rows
    )


def plain(found: list[dict[str, Any]]) -> str:
    """A benchmark's rows as they are."""
    rows = [row for each in found for row in each["rows"]]
    cells = [[_cell(key, value) for key, value in row.items()] for row in rows]
    return markdown(list(rows[0]), cells)


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if key in ("loss", "auc", "user_auc"):
        return f"{value:.4f}"
    if key.startswith("share"):
        return f"{value:.2f}"
    if key == "ours is":
        return f"{value:.1f}x"
    return _digits(value) if value >= 10 else f"{value:.2f}"


# name in the pages -> (benchmark, how its results become a table)
TABLES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], str]]] = {
    "unit": ("local_activation", unit),
    "targets": ("local_activation", targets),
    "peers": ("local_activation", peers),
    "memory": ("local_activation", memory),
    "history_length": ("history_length", plain),
    "unit_options": ("unit_options", plain),
    "sparse_update": ("sparse_update", plain),
    "sparse_sizes": ("sparse_sizes", plain),
    "dice": ("dice", plain),
    "call_overhead": ("call_overhead", plain),
    "training_time": ("training_time", plain),
    "training_accuracy": ("training_accuracy", plain),
}
# Those of a GPU: the part of tools/gpu_check.py that measures them, and what makes heads and rows of its results.
GPU_TABLES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], gpu_tables.Table]]] = {
    "gpu": ("timings", gpu_tables.unit),
    "gpu_aims": ("timings", gpu_tables.aims),
    "gpu_step": ("step", gpu_tables.step),
    "gpu_dice": ("dice", gpu_tables.dice),
    "gpu_sparse": ("sparse", gpu_tables.sparse),
    "gpu_counters": ("counters", gpu_tables.counters),
}
NOT_MEASURED = "Not measured: `make gpu-check` on a machine with a GPU.\n"


def of_part(result: dict[str, Any], part: str) -> dict[str, Any]:
    """The result with the commits and dates of the runs that measured this part."""
    own = result.get("parts", {}).get(part, {})
    rows = [row for row in result.get({"timings": "rows"}.get(part, part), ()) if "variants" in row]
    if rows:
        own = {key: ", ".join(dict.fromkeys(row.get(key, own.get(key, "unknown")) for row in rows)) for key in own}
    return result | {"machine": result["machine"] | own}


def filled(text: str, results: list[dict[str, Any]]) -> str:
    """A page with its tables from the results."""

    def table(match: re.Match) -> str:
        if match[2] in GPU_TABLES:
            part, rows_of = GPU_TABLES[match[2]]
            found = of(results, "gpu_check")
            heads, rows = rows_of(found)
            made = (
                f"{markdown(heads, rows)}\n{caption([of_part(each, part) for each in found])}" if rows else NOT_MEASURED
            )
            return f"{match[1]}{made}{match[3]}"
        benchmark, make = TABLES[match[2]]
        found = of(results, benchmark)
        return f"{match[1]}{make(found)}\n{caption(found)}{match[3]}" if found else match[0]

    return MARKED.sub(table, text)


def bars(
    groups: list[str], series: list[tuple[str, str, list[float]]], labels: list[str], title: str, path: Path
) -> None:
    """Groups of bars on a logarithmic axis of milliseconds.

    series: (name, color, a value per group) each; the bars of the last have the labels.
    """
    matplotlib.use("Agg")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    at, width = np.arange(len(groups)), 0.84 / len(series)
    for place, (name, color, values) in enumerate(series):
        drawn = axes.bar(at + (place - (len(series) - 1) / 2) * width, values, 0.95 * width, label=name, color=color)
    axes.bar_label(drawn, labels, padding=2, fontsize=9, fontweight="bold")
    axes.set_xticks(at, groups, fontsize=8)
    axes.set(yscale="log", ylabel="ms, forward + backward")
    axes.set_title(title, fontsize=10)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.margins(x=0.02, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=4, loc="upper left", frameon=False)
    with files.replacing(path) as out:
        figure.savefig(out, format="png", dpi=150)


PEERS = {
    EAGER: ("padded, eager", "#c9ced6"),
    COMPILED: ("padded, torch.compile", "#8d99ae"),
    FOLDED: ("folded by hand, torch.compile", "#5c677d"),
}
OUR_COLOR = "#e07a1f"


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Forward and backward on the CPU, per shape and variant."""
    names = PEERS | {FUSED: ("din_kernels", OUR_COLOR)}
    series = [
        (label, color, [by_variant(each)[name]["both_ms"][1] for each in found])
        for name, (label, color) in names.items()
    ]
    ratios = [f"{by_variant(each)[COMPILED]['both_ratio']:.0f}x" for each in found]
    title = "Local activation unit on a 2-core CPU; label: times faster than torch.compile"
    bars([f"{each['case']}\nD={each['shape']['D']}" for each in found], series, ratios, title, path)


def _over_compiled(compiled: float, ours: float) -> str:
    return "" if math.isnan(compiled / ours) else f"{compiled / ours:.1f}x"


def plot_gpu(found: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Forward and backward on each chip, per shape and variant, our fastest backend last."""
    paths = []
    for result in found:
        rows = [(row, row["variants"]) for _, row in gpu_tables.measured([result], "rows")]

        def ms(variants: dict[str, Any], *names: str) -> float:
            return min((variants[name]["both"]["median_ms"] for name in names if name in variants), default=math.nan)

        series = [(label, color, [ms(v, name) for _, v in rows]) for name, (label, color) in PEERS.items()]
        series.append(("din_kernels", OUR_COLOR, [ms(v, *OURS) for _, v in rows]))
        ratios = [_over_compiled(ms(v, COMPILED), ms(v, *OURS)) for _, v in rows]
        title = f"Local activation unit on {result['machine']['chip']}; label: times faster than torch.compile"
        groups = [f"{row['shape']}\n{row['dtype'].removeprefix('torch.')}" for row, _ in rows]
        paths.append(folder / "speed-{}.png".format("".join(c if c.isalnum() else "-" for c in result["case"].lower())))
        bars(groups, series, ratios, title, paths[-1])
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args()
    results = list(harness.load().values())
    stale = []
    for page in PAGES:
        path = harness.ROOT / page
        text = path.read_text()
        new = filled(text, results)
        if new != text:
            stale.append(page)
            if not options.check:
                files.write_text(path, new)
    if options.check:
        print("\n".join(f"{page}: a table differs from benchmarks/results" for page in stale))
        return 1 if stale else 0
    plot(of(results, "local_activation"), harness.ROOT / PLOT)
    plots = plot_gpu(of(results, "gpu_check"), (harness.ROOT / PLOT).parent)
    print(f"written: {', '.join([*stale, PLOT, *(path.name for path in plots)])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
