"""Counts what every Triton kernel costs at the house shapes, without a GPU, and predicts its time.

    python tools/kernel_costs.py                       writes docs/results/kernel_costs.md and .json
    python tools/kernel_costs.py --check               fails where a kernel's count rose by more than 5 %
    python tools/kernel_costs.py --calls gpu_train --chips sm_90        prints a table, writes nothing

A call of the backend is made with tensors of the full size whose contents nobody reads, the lengths of the histories
excepted. Each launch is compiled for the chip and not run. Then

    machine_code.py    finds the instructions and the loops of its machine code;
    loop_trips.py      evaluates the bounds of these loops in Triton's IR (triton_ir.py), from grid and lengths;
    loop_matching.py   says which loop of the one is which of the other;
    launch_cost.py     multiplies: instructions by kind, times the trips of their loops;
    gpu_model.py       knows how many warps a multiprocessor holds, and makes a time of all that;
    cost_table.py      prints the rows, and compares them with those that are kept.

A *thread instruction a pair* is 32 x warp instructions / (candidate, behaviour) pairs, for Dice / rows. torch's own
operators (products of the queries, fills, sums of small tensors) are not counted. Counts depend on Triton's version,
which the table names: --check refuses another one. docs/performance.md compares counts and times with an H200's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import gpu_model
import launch_cost
import machine_code
import numpy as np
import torch
import triton
import triton_cubins
from cost_table import REMAKE, faults, page, printed
from triton_cubins import Unit

from din_kernels import files
from din_kernels.benchmarking.shapes import SHAPES, ShapeUnavailable

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
PAGE, TABLE = RESULTS / "kernel_costs.md", RESULTS / "kernel_costs.json"
CHIPS = ("sm_80", "sm_90", "sm_100")
DICE = (1_638_400, 80)  # rows, channels

# House shapes, and what of a call differs from the shape.
UNITS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpu_train": ("gpu_train", {}),
    "gpu_train, softmax": ("gpu_train", {"normalize": "softmax"}),
    "gpu_train, Dice in training": ("gpu_train", {"activation": "dice", "training": True}),
    "uniform100": ("uniform100", {}),
    "uniform100, TF32": ("uniform100", {"precision": "high"}),
    "full100": ("full100", {}),
    "real": ("real", {}),
    "industrial": ("industrial", {}),
    "serving": ("serving", {}),
    "long": ("long", {}),
}


class Call(NamedTuple):
    """A call of the backend: forward alone, forward and backward, and the pairs that it works on."""

    forward: Callable[[], Any]
    both: Callable[[], Any]
    pairs: int


def unit(shape_name: str, changes: dict[str, Any]) -> Call:
    """A call of the unit at a house shape.

    Raises:
        ShapeUnavailable: the shape needs data that is not there.
    """
    shape = SHAPES[shape_name]
    length = torch.from_numpy(np.asarray(shape.lengths(np.random.default_rng(0)), np.int64))
    known = {name: getattr(shape, name) for name in ("dtype", "dim", "hidden", "activation", "candidates")}
    made = Unit(int(length.sum()) // len(length), users=len(length), **known | changes)
    forward, both = (triton_cubins.unit_call(made, backward, length) for backward in (False, True))
    return Call(forward, both, int(length.sum()) * shape.candidates)


def dice(dtype: torch.dtype) -> Call:
    """A call of Dice in training."""
    forward, both = (lambda backward=each: triton_cubins.dice_call(*DICE, dtype, backward) for each in (False, True))
    return Call(forward, both, DICE[0])


CALLS: dict[str, Callable[[], Call]] = {
    name: lambda shape=shape, changes=changes: unit(shape, changes) for name, (shape, changes) in UNITS.items()
}
CALLS |= {"Dice": lambda: dice(torch.bfloat16), "Dice, fp32": lambda: dice(torch.float32)}
# What --check counts unless told: CI has 3 minutes for it, and the rest takes as long again.
CHECKED = ("gpu_train", "uniform100", "industrial", "serving", "long", "Dice")


# --- counting ---------------------------------------------------------------------------------------------------------


def rows_of(chip: str, name: str) -> list[dict[str, Any]]:
    """A row per kernel of a call, launches of the same kernel added up."""
    call, limits = CALLS[name](), gpu_model.CHIPS[chip]
    forward = launch_cost.launches(chip, call.forward)
    both = launch_cost.launches(chip, call.both)
    passes = {"forward": both[: len(forward)], "backward": both[len(forward) :]}
    rows = []
    for direction, launches in passes.items():
        added: dict[str, dict[str, Any]] = {}
        for launch in launches:
            found = launch_cost.cost(limits, launch)
            row = added.setdefault(found.key, _first(chip, name, direction, found))
            _add(row, limits, found, call.pairs)
        names: Counter[str] = Counter()
        for row in added.values():
            # A second variant of the same kernel, say for another layer, has a number.
            names[row["kernel"]] += 1
            if names[row["kernel"]] > 1:
                row["kernel"] += f" ({names[row['kernel']]})"
        rows += added.values()
    return [_rounded(row) for row in rows]


def _first(chip: str, name: str, direction: str, found: launch_cost.Cost) -> dict[str, Any]:
    """A row without what adds up over launches."""
    return {
        "chip": chip,
        "call": name,
        "pass": direction,
        "kernel": found.name,
        "launches": 0,
        "instructions": 0.0,  # thread instructions a pair
        "in_tiles": 0.0,  # of these, in a loop within a loop
        "kinds": dict.fromkeys(machine_code.KINDS, 0.0),
        "registers": found.registers,
        "shared": found.shared,
        "warps": found.warps,
        "resident_warps": found.programs * found.warps,
        "spills": found.spills[0],
        "spills_in_tiles": found.spills[1],
        "parts": {},
        "ms": 0.0,
    }


def _add(row: dict[str, Any], limits: gpu_model.Chip, found: launch_cost.Cost, pairs: int) -> None:
    """Adds a launch."""
    row["launches"] += 1
    for kind, number in found.work.instructions.items():
        row["kinds"][kind] += number * 32 / pairs
    row["instructions"] += sum(found.work.instructions.values()) * 32 / pairs
    row["in_tiles"] += sum(found.in_tiles.values()) * 32 / pairs
    parts = gpu_model.times(limits, found.work)
    for part, time in parts.items():
        row["parts"][part] = row["parts"].get(part, 0.0) + time
    row["ms"] += max(parts.values()) + gpu_model.LAUNCH


def _rounded(value: Any) -> Any:
    """Numbers to four significant digits, so that a kept table changes where a kernel does."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def counted(chips: list[str], names: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of all calls on all chips, and what could not be counted."""
    rows, failed = [], []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        tasks = [(chip, name, pool.submit(rows_of, chip, name)) for chip in chips for name in names]
        for chip, name, task in tasks:
            try:
                rows += task.result()
            except ShapeUnavailable as missing:
                print(f"{chip}, {name}: left out, {missing}", file=sys.stderr)
            except Exception:
                failed.append(f"{chip}, {name}:\n{traceback.format_exc()}")
    return rows, failed


def checked(chips: list[str], names: list[str]) -> list[str]:
    """What is wrong with the kept table, beside these kernels."""
    if not TABLE.exists():
        return [f"{TABLE} must hold the kept table, and does not exist: {REMAKE}"]
    kept = json.loads(TABLE.read_text())
    if wrong := faults(kept, [], triton.__version__):
        return wrong  # another version: known before anything is compiled
    rows, wrong = counted(chips, names)
    wrong += faults(kept, rows, triton.__version__)
    print(f"{len(rows)} kernels of {', '.join(names)} on {', '.join(chips)}: {len(wrong)} not as in the kept table")
    return wrong


def write(rows: list[dict[str, Any]]) -> None:
    """Page and table, a row a line."""
    lines = ",\n".join(files.json_text(row) for row in rows)
    files.write_text(TABLE, f'{{"triton": {files.json_text(triton.__version__)}, "rows": [\n{lines}\n]}}\n')
    files.write_text(PAGE, page(rows, triton.__version__))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--chips", nargs="+", choices=gpu_model.CHIPS, metavar="chip", help=f"default: {' '.join(CHIPS)}"
    )
    parser.add_argument(
        "--calls", nargs="+", choices=CALLS, metavar="name", help=f"default: all, with --check {', '.join(CHECKED)}"
    )
    parser.add_argument("--check", action="store_true", help="compare with the kept table and write nothing")
    options = parser.parse_args()
    chips = options.chips or list(CHIPS)
    if options.check:
        wrong = checked(chips, options.calls or list(CHECKED))
    else:
        rows, wrong = counted(chips, options.calls or list(CALLS))
        if options.chips or options.calls:
            print(printed(rows))
        elif not wrong:
            write(rows)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
