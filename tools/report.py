"""Writes the tables of README.md and docs/performance.md and the plot in docs/images from benchmarks/results.

A table stands between `<!-- table: name -->` and `<!-- end -->`. With --check nothing is written, and the exit status
is 1 when a table differs from the results.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from din_kernels import files
from din_kernels.benchmarking import harness
from din_kernels.benchmarking.gpu import FBGEMM, GRAPH
from din_kernels.benchmarking.local_activation import BUCKETED, COMPILED, COPIES, EAGER, FOLDED, FUSED
from din_kernels.benchmarking.shapes import CPU_SHAPES

OURS, BOTH = ("cuda", "triton"), ("forward", "both")
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


def gpu(found: list[dict[str, Any]]) -> str:
    """Milliseconds forward / forward + backward of each house shape on each chip, and ratios to our fastest backend."""
    rows = []
    for chip, row, variants in gpu_rows(found):
        cells = [
            "" if name not in variants else "{:.3f} / {:.3f}".format(*(variants[name][w]["median_ms"] for w in BOTH))
            for name in (*OURS, EAGER, COMPILED, FOLDED)
        ]
        compiled = variants.get(COMPILED)
        over = "" if compiled is None else " / ".join(f"{compiled[what]['ratio']:.1f}x" for what in BOTH)
        dtype = row["dtype"].removeprefix("torch.")
        rows.append([f"{chip}: `{row['shape']}`, {dtype}", *cells, over, f"{row['share of floor']:.2f}"])
    heads = [
        "chip: shape",
        *OURS,
        EAGER,
        COMPILED,
        "folded by hand, compiled",
        "over compiled",
        "share of the floor, kernels alone",
    ]
    return markdown(heads, rows)


def gpu_rows(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(chip, row, its variants) of every shape that one of our backends was measured on."""
    for result in found:
        for row in result["rows"]:
            if "share of floor" in row:
                yield result["machine"]["chip"], row, row["variants"]


def gpu_aims(found: list[dict[str, Any]]) -> str:
    """What is asked of `gpu_train`, `serving` and the sparse step, and what came."""
    rows = []

    def add(chip, what, aim, reached, met):
        rows.append([f"{chip}: {what}", aim, reached, "yes" if met else "no"])

    for chip, row, variants in gpu_rows(found):
        if row["shape"] == "gpu_train":
            best = min(
                (variants[name] for name in OURS if name in variants), key=lambda own: own["forward"]["median_ms"]
            )
            if COMPILED in variants:
                peer = variants[COMPILED]
                for what, name, aim in (("forward", "forward", 6), ("forward + backward", "both", 5)):
                    ratio = peer[name]["ratio"]
                    add(chip, f"{what}, over compiled", f"{aim}x", f"{ratio:.1f}x", ratio >= aim)
                share = best["both"]["peak_mb"] / peer["both"]["peak_mb"]
                add(chip, "peak memory, of compiled", "1/8", f"1/{1 / share:.1f}", share <= 1 / 8)
            above = 1 / row["share of floor"]
            add(chip, "forward, above the floor", "2.5x, cuda 1.8x", f"{above:.2f}x", above <= 2.5)
            if set(OURS) <= set(variants):
                triton, cuda = (variants[name].get(GRAPH, variants[name]["forward"]) for name in ("triton", "cuda"))
                ahead = triton["median_ms"] / cuda["median_ms"]
                add(chip, "forward, cuda over triton", "1.2x", f"{ahead:.2f}x", ahead >= 1.2)
        if row["shape"] == "serving":
            for name in (name for name in OURS if GRAPH in variants.get(name, {})):
                us = 1e3 * variants[name][GRAPH]["median_ms"]
                add(chip, f"serving in a CUDA graph, {name}", "cuda 30 us", f"{us:.1f} us", name != "cuda" or us < 30)
    for result in found:
        chip = result["machine"]["chip"]
        step = result.get("sparse step", {}).get("variants", {})
        if "ratio" in step.get(FBGEMM, {}):
            ratio = step[FBGEMM]["ratio"]
            add(chip, "row-wise Adagrad + MBA, over FBGEMM's", "1x", f"{ratio:.2f}x", ratio >= 1)
    return markdown(["chip: what", "aim", "reached", "met"], rows)


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
    "gpu": ("gpu_check", gpu),
    "gpu_aims": ("gpu_check", gpu_aims),
}
NOT_MEASURED = "Not measured: `make gpu-check` on a machine with a GPU.\n"


def filled(text: str, results: list[dict[str, Any]]) -> str:
    """A page with its tables from the results."""

    def table(match: re.Match) -> str:
        benchmark, make = TABLES[match[2]]
        found = of(results, benchmark)
        if benchmark == "gpu_check" and not found:
            return f"{match[1]}{NOT_MEASURED}{match[3]}"
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


def plot_gpu(found: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Forward and backward on each chip, per shape and variant, our fastest backend last."""
    paths = []
    for result in found:
        rows = [(row, variants) for _, row, variants in gpu_rows([result])]

        def ms(variants: dict[str, Any], *names: str) -> float:
            return min((variants[name]["both"]["median_ms"] for name in names if name in variants), default=math.nan)

        series = [(label, color, [ms(v, name) for _, v in rows]) for name, (label, color) in PEERS.items()]
        series.append(("din_kernels", OUR_COLOR, [ms(v, *OURS) for _, v in rows]))
        ratios = [f"{v[COMPILED]['both']['ratio']:.0f}x" if COMPILED in v else "" for _, v in rows]
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
