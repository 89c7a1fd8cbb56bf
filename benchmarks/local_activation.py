"""The activation unit on the house shapes: ours beside what users write today, forward and forward + backward.

Per shape: equality asserted first, medians of interleaved rounds, the share of the machine's sgemm rate (work counted
as 2 (D H1 + H1 H2 + ...) per valid pair, four times that with backward), and the peak memory of forward + backward
beyond inputs and outputs, gradients counted as outputs. A peak below the smallest buffer of [B, T, 4D] or [N, H] shows
that there was none. Exit status 1 when a peak is larger than allowed.
"""

from __future__ import annotations

import argparse
import functools
import sys

import torch

from din_kernels.benchmarking import harness
from din_kernels.benchmarking.local_activation import measure, prepare, time_table, variants_of
from din_kernels.benchmarking.memory import peak_bytes
from din_kernels.benchmarking.shapes import CPU_SHAPES, SHAPES, Inputs, ShapeUnavailable, inputs_of, work
from din_kernels.commands.console import wide_console


def memory(name: str, inputs: Inputs) -> dict[str, float] | None:
    """Peak MB beyond inputs and outputs, what it may be, and the smallest of the buffers that must not be."""
    peak = peak_bytes(functools.partial(prepare, name))
    if peak is None:
        return None
    parameters = sum(each.numel() for each in inputs.unit.parameters())
    size = inputs.query.element_size()
    outputs = (2 * inputs.query.numel() + inputs.history.values.numel() + parameters) * size
    smallest = min(inputs.pairs * min(inputs.unit.hidden), len(inputs.query) * SHAPES[name].width * 4 * inputs.unit.dim)
    return {
        "peak": round((peak - outputs) / 1e6, 2),
        "allowed": round((1.5 * inputs.history.values.numel() * size + 16 * 2**20) / 1e6, 2),
        "smallest buffer of [B, T, 4D] or [N, H]": round(smallest * size / 1e6, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="shape", help=f"among {', '.join(CPU_SHAPES)}; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="timed seconds per shape")
    harness.add_save(parser)
    options = parser.parse_args()
    console = wide_console()
    torch._dynamo.config.recompile_limit = 64  # one static shape per bucket, with gradients and without
    failed = []
    for name in options.shapes or CPU_SHAPES:
        try:
            inputs = inputs_of(SHAPES[name])
        except ShapeUnavailable as reason:
            console.print(f"{name}: skipped, {reason}", soft_wrap=True)
            continue
        torch._dynamo.reset()
        rows, reasons = measure(inputs, variants_of(name), options.seconds)
        longest = int(inputs.history.lengths().max())
        shape = {
            "about": SHAPES[name].about,
            "D": inputs.unit.dim,
            "H": list(inputs.unit.hidden),
            "N": inputs.history.num_rows,
            "pairs": inputs.pairs,
            "padded to": longest,
            "GFLOP forward": round(work(inputs) / 1e9, 4),
        }
        console.print(time_table(f"{name}: {shape['about']}, D={shape['D']}, {shape['pairs']} pairs", rows))
        for variant, reason in reasons.items():
            console.print(f"{variant} does not run here: {reason}", soft_wrap=True)
        used = memory(name, inputs)
        if used is not None:
            console.print("memory of forward + backward, MB: " + ", ".join(f"{k} {v:.1f}" for k, v in used.items()))
            if used["peak"] > used["allowed"]:
                failed.append(f"{name}: peak memory must be at most {used['allowed']} MB, got {used['peak']}")
        if options.save:
            harness.save(options.save, "local_activation", name, rows, shape=shape, memory_mb=used)
    for line in failed:
        console.print(line, soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
