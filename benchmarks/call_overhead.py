"""The cost of one call of the unit on a tiny input, where nothing but the call itself takes time."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from din_kernels.benchmarking import harness
from din_kernels.benchmarking.local_activation import EAGER, FUSED, REFERENCE, equal_variants
from din_kernels.benchmarking.shapes import Shape, inputs_of
from din_kernels.commands.console import wide_console

TINY = Shape("tiny", lambda rng: np.array([3, 1, 2, 2]), 3, "4 users, lengths 3, 1, 2, 2, D=8, H=(8, 4)", 8, (8, 4))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="timed seconds")
    harness.add_save(parser)
    options = parser.parse_args()
    console = wide_console()
    made, reasons = equal_variants(inputs_of(TINY), (FUSED, EAGER, REFERENCE))
    rows = {name: {"unit": name} for name in made}
    for what, heading in (("forward", "forward"), ("both", "forward + backward")):
        calls = {name: getattr(variant, what) for name, variant in made.items()}
        timings = harness.interleaved(calls, options.seconds / 2, rounds=(100, 10_000), warm_up=50)
        for name, timing in timings.items():
            rows[name] |= {f"{heading}, us": timing.median * 1e6, f"p80 of {heading}": timing.p80 * 1e6}
    console.print(harness.table(f"one call: {TINY.about}", list(rows.values())))
    for name, reason in reasons.items():
        console.print(f"{name} does not run here: {reason}", soft_wrap=True)
    if options.save:
        harness.save(options.save, "call_overhead", TINY.name, list(rows.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
