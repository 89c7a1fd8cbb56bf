"""Time per pair by the length of the histories, all of one length: where folding begins, and what short ones cost."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from din_kernels.benchmarking import harness
from din_kernels.benchmarking.local_activation import FUSED, equal_variants
from din_kernels.benchmarking.shapes import Shape, inputs_of, work
from din_kernels.commands.console import wide_console

LENGTHS = (1, 2, 4, 6, 8, 9, 10, 11, 12, 16, 32, 64, 100)
PAIRS = 20_000


def shape_of(length: int) -> Shape:
    """About `PAIRS` behaviours in histories of one length."""
    return Shape(f"length {length}", lambda rng: np.full(PAIRS // length, length), length, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="timed seconds")
    harness.add_save(parser)
    options = parser.parse_args()
    console = wide_console()
    rows: dict[int, dict[str, float]] = {}
    inputs = {length: inputs_of(shape_of(length)) for length in LENGTHS}
    variants = {length: equal_variants(inputs[length], (FUSED,))[0][FUSED] for length in LENGTHS}
    sgemm, operations = harness.sgemm_call()
    for what, factor, heading in (("forward", 1, "forward"), ("both", 4, "forward + backward")):
        calls = {str(length): getattr(variant, what) for length, variant in variants.items()}
        timings = harness.interleaved(calls | {"sgemm": sgemm}, options.seconds / 2)
        rate = operations / timings.pop("sgemm").median
        for length in LENGTHS:
            seconds = timings[str(length)].median
            row = rows.setdefault(length, {"behaviours": length})
            row[f"{heading}, ns a pair"] = seconds / inputs[length].pairs * 1e9
            row[f"share of sgemm, {heading}"] = factor * work(inputs[length]) / seconds / rate
    console.print(harness.table(f"histories of one length, {PAIRS} pairs, D=128, H=(80, 40)", list(rows.values())))
    if options.save:
        harness.save(options.save, "history_length", "d128", list(rows.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
