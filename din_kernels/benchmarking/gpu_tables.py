"""What the results of a GPU say, as heads and rows of tables; tools/report.py writes them into the pages.

A cell is empty where something was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from din_kernels.benchmarking import gpu_dice, gpu_step
from din_kernels.benchmarking.gpu import FBGEMM, GRAPH
from din_kernels.benchmarking.local_activation import COMPILED, EAGER, FOLDED

OURS, PEERS = ("cuda", "triton"), (EAGER, COMPILED, FOLDED)
Results = list[dict[str, Any]]
Table = tuple[list[str], list[list[str]]]

# Aims for the Triton kernels: milliseconds of the forward by CUDA graph, and of forward and backward as called.
FORWARD_MS = {
    "gpu_train": 0.30,
    "uniform100": 0.12,
    "full100": 0.14,
    "real": 0.08,
    "industrial": 0.07,
    "serving": 0.09,
    "long": 0.60,
}
BOTH_MS = {"gpu_train": 1.8}
BOTH_OF_PEER = 0.7  # of the fastest peer's time, on the other shapes
STEP_RATIO = {"fp32": 1.8, "bf16 autocast": 2.5}  # times faster than with the packed eager unit
DICE_OF_FLOOR, DICE_SHAPE = 1.6, [1_638_400, 80]


def measured(found: Results, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(chip, row) of every row of a list of results that was not skipped."""
    for result in found:
        for row in result.get(key, ()):
            if "variants" in row:
                yield result["machine"]["chip"], row


def _ms(row: dict[str, Any] | None, what: str = "median_ms", digits: int = 3) -> str:
    return "" if row is None or what not in row else f"{row[what]:.{digits}f}"


def forward_of(variant: dict[str, Any]) -> dict[str, Any]:
    """The forward by CUDA graph, or as called where no graph could be captured."""
    return variant.get(GRAPH, variant["forward"])


def unit(found: Results) -> Table:
    """Milliseconds of the forward by CUDA graph and of forward + backward as called, and over the fastest peer."""
    rows = []
    for chip, row in measured(found, "rows"):
        variants = row["variants"]
        cells = [
            "" if name not in variants else f"{_ms(forward_of(variants[name]))} / {_ms(variants[name]['both'])}"
            for name in (*OURS, *PEERS)
        ]
        share = f"{row['share of floor']:.2f}" if "share of floor" in row else ""
        dtype = row["dtype"].removeprefix("torch.")
        rows.append([f"{chip}: `{row['shape']}`, {dtype}", *cells, over_peers(variants), share])
    peers = [EAGER, COMPILED, "folded by hand, compiled"]
    return ["chip: shape", *OURS, *peers, "over the fastest peer", "share of the floor, forward"], rows


def over_peers(variants: dict[str, Any]) -> str:
    """How many times faster our fastest backend is than the fastest peer, forward / forward + backward."""
    ratios = []
    for time in (lambda each: forward_of(each)["median_ms"], lambda each: each["both"]["median_ms"]):
        ours, theirs = (
            min((time(variants[name]) for name in names if name in variants), default=None) for names in (OURS, PEERS)
        )
        if ours is None or theirs is None:
            return ""
        ratios.append(f"{theirs / ours:.2f}x")
    return " / ".join(ratios)


def step(found: Results) -> Table:
    """Milliseconds of a DIN step by variant, and of its kernels and the host for ours."""
    names = (*OURS, gpu_step.PACKED, gpu_step.COMPILED)
    rows = []
    for chip, row in measured(found, "step"):
        variants = row["variants"]
        cells = [_ms(variants.get(name), digits=2) for name in names]
        parts = [" / ".join(_ms(variants.get("triton"), key, 2) for key in ("kernels_ms", "host_ms"))]
        rows.append([f"{chip}: {row['precision']}", *cells, *parts])
    return ["chip: precision", *names, "triton: kernels / host"], rows


def dice(found: Results) -> Table:
    """Milliseconds of Dice forward + backward by variant, of its kernels and the host, and over the floor."""
    names = (*OURS, gpu_dice.EAGER, gpu_dice.COMPILED)
    rows = []
    for chip, row in measured(found, "dice"):
        variants, floor = row["variants"], row["floor_ms"]
        cells = [_ms(variants.get(name)) for name in names]
        own = variants.get("triton", {})
        parts = " / ".join(_ms(own, key) for key in ("kernels_ms", "host_ms"))
        over = f"{own['median_ms'] / floor:.2f}x" if own else ""
        rows.append([f"{chip}: {row['shape']}, {row['dtype']}", *cells, parts, f"{floor:.3f}", over])
    return ["chip: shape", *names, "triton: kernels / host", "floor", "triton over floor"], rows


def sparse(found: Results) -> Table:
    """Milliseconds of gather, backward and update, and of the kernels in it."""
    rows = []
    for result in found:
        for key in ("sparse step", "sparse step, large"):
            each = result.get(key, {})
            for name, variant in each.get("variants", {}).items():
                if "median_ms" in variant:
                    about = each["about"].split(", ", 1)[1]
                    cells = [_ms(variant), _ms(variant, "kernels_ms"), _ms(variant, "host_ms")]
                    rows.append([f"{result['machine']['chip']}: {about}: {name}", *cells])
    return ["chip: what", "ms", "kernels", "host"], rows


def counters(found: Results) -> Table:
    """Nsight Compute's counters, a kernel a row."""
    heads: list[str] = []
    rows = []
    for result in found:
        for shape, kernels in result.get("counters", {}).items():
            for row in kernels if isinstance(kernels, list) else ():
                heads = heads or [name for name in row if name != "kernel"]
                cells = [f"{row[name]:,.4g}" if name in row else "" for name in heads]
                rows.append([f"{result['machine']['chip']}: {shape}, `{row['kernel']}`", *cells])
    return ["chip: shape, kernel", *heads], rows


def aims(found: Results) -> Table:
    """What is asked of the Triton kernels, and what came."""
    rows: list[list[str]] = []

    def add(chip: str, what: str, aim: str, reached: str, met: bool) -> None:
        rows.append([f"{chip}: {what}", aim, reached, "yes" if met else "no"])

    for chip, row in measured(found, "rows"):
        variants, shape = row["variants"], row["shape"]
        if "triton" not in variants:
            continue
        if shape in FORWARD_MS:
            ms, aim = forward_of(variants["triton"])["median_ms"], FORWARD_MS[shape]
            add(chip, f"`{shape}`, forward by CUDA graph", f"{aim:.2f} ms", f"{ms:.3f} ms", ms <= aim)
        both = variants["triton"]["both"]["median_ms"]
        peers = [variants[name]["both"]["median_ms"] for name in PEERS if name in variants]
        if shape in BOTH_MS:
            aim = BOTH_MS[shape]
            add(chip, f"`{shape}`, forward + backward", f"{aim:.1f} ms", f"{both:.2f} ms", both <= aim)
        elif peers:
            share = both / min(peers)
            what = f"`{shape}`, forward + backward, of the fastest peer's time"
            add(chip, what, f"{BOTH_OF_PEER}x", f"{share:.2f}x", share <= BOTH_OF_PEER)
    for chip, row in measured(found, "step"):
        variants = row["variants"]
        if row["precision"] in STEP_RATIO and {"triton", gpu_step.PACKED} <= set(variants):
            aim = STEP_RATIO[row["precision"]]
            ratio = variants[gpu_step.PACKED]["median_ms"] / variants["triton"]["median_ms"]
            add(
                chip,
                f"DIN step, {row['precision']}, over the packed eager unit",
                f"{aim}x",
                f"{ratio:.2f}x",
                ratio >= aim,
            )
    for chip, row in measured(found, "dice"):
        if row["shape"] == DICE_SHAPE and "triton" in row["variants"]:
            over = row["variants"]["triton"]["median_ms"] / row["floor_ms"]
            what = f"Dice {row['shape']}, {row['dtype']}, over the floor"
            add(chip, what, f"{DICE_OF_FLOOR}x", f"{over:.2f}x", over <= DICE_OF_FLOOR)
    for result in found:
        fbgemm = result.get("sparse step", {}).get("variants", {}).get(FBGEMM, {})
        if "ratio" in fbgemm:
            what = "row-wise Adagrad + MBA, over FBGEMM's"
            add(result["machine"]["chip"], what, "1x", f"{fbgemm['ratio']:.2f}x", fbgemm["ratio"] >= 1)
    return ["chip: what", "aim", "reached", "met"], rows


# By the part of tools/gpu_check.py that measures them.
OF_PARTS = {"timings": unit, "step": step, "dice": dice, "sparse": sparse, "counters": counters}
