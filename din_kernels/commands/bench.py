"""Times the activation unit on the house shapes: ours beside eager, compiled and hand-folded padded PyTorch.

Equality is asserted first; then all variants take turns in this process. The whole record (peak memory, kept results,
training) is made by the scripts in benchmarks/ of the source tree.
"""

from __future__ import annotations

import argparse
import math

import torch

from din_kernels import checks
from din_kernels.benchmarking.local_activation import measure, time_table, variants_of
from din_kernels.benchmarking.shapes import CPU_SHAPES, SHAPES, ShapeUnavailable, inputs_of
from din_kernels.commands.console import wide_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument("shapes", nargs="*", default=["uniform100"], help=f"among {', '.join(CPU_SHAPES)}")
    parser.add_argument("--seconds", type=float, default=10.0, help="timed seconds per shape")
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out")


def run(options: argparse.Namespace) -> int:
    """Prints a table per shape."""
    console = wide_console()
    for name in options.shapes:
        checks.one_of("shape", name, CPU_SHAPES)
    if not 0 <= options.seconds < math.inf:
        raise ValueError(f"seconds must be at least 0 and finite, got {options.seconds}")
    for name in options.shapes:
        try:
            inputs = inputs_of(SHAPES[name])
        except ShapeUnavailable as reason:
            console.print(f"{name}: skipped, {reason}", soft_wrap=True)
            continue
        torch._dynamo.reset()
        names = [each for each in variants_of(name) if not (options.without_compile and "compile" in each)]
        rows, reasons = measure(inputs, names, options.seconds)
        console.print(time_table(f"{name}: {SHAPES[name].about}, D={SHAPES[name].dim}", rows))
        for variant, why in reasons.items():
            console.print(f"{variant} does not run here: {why}", soft_wrap=True)
    return 0
