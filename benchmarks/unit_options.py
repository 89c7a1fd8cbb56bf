"""What the unit's options cost on uniform100: each beside the default (concat, sigmoid, no normalization, packed fp32).

Every option is held to the reference by verification's bounds first, at the same widths.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from din_kernels import Gather, Jagged, Padded, use_backend
from din_kernels.benchmarking import harness
from din_kernels.benchmarking.shapes import SHAPES, Inputs, inputs_of
from din_kernels.commands.console import wide_console
from din_kernels.nn import LocalActivationUnit
from din_kernels.verification import deviations, make_case

SHAPE = SHAPES["uniform100"]
TABLE_ROWS = (50_000, 1000)
LENGTHS = (0, 1, 9, 40, 100, 73)

# Name: the unit's options, how its history is given, dtype.
OPTIONS: dict[str, tuple[dict[str, Any], str, torch.dtype]] = {
    "default": ({}, "packed", torch.float32),
    "product features": ({"features": "product"}, "packed", torch.float32),
    "softmax": ({"normalize": "softmax"}, "packed", torch.float32),
    "padded to 100, lengths": ({}, "padded", torch.float32),
    "rows by id, two tables": ({}, "by id", torch.float32),
    "bf16 history and query": ({}, "packed", torch.bfloat16),
    "Dice, evaluation": ({"activation": "dice"}, "packed", torch.float32),
    "Dice, training": ({"activation": "dice"}, "packed", torch.float32),
    "Dice, training, padded statistics": ({"activation": "dice", "stats": "padded"}, "padded", torch.float32),
    "outer features": ({"features": "outer"}, "packed", torch.float32),
}


def require_equal(name: str) -> None:
    """Holds an option to the reference on a few histories."""
    options, _, dtype = OPTIONS[name]
    activation = "dice in training" if "training" in name else options.get("activation", "sigmoid")
    case = make_case(
        options.get("features", "concat"),
        activation,
        options.get("normalize", "none"),
        "right padded" if name.startswith("padded") else "packed",
        SHAPE.dim,
        SHAPE.hidden,
        LENGTHS,
    )
    for each in deviations(case, "cpu", dtype):
        if not each.ratio <= 1:
            raise AssertionError(f"{name}: {each.tensor} must be within {each.bound:.2e}, got {each.error:.2e}")


def calls_of(name: str, inputs: Inputs) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The option's forward without a graph, and forward with all gradients."""
    options, layout, dtype = OPTIONS[name]
    torch.manual_seed(0)
    unit = LocalActivationUnit(SHAPE.dim, SHAPE.hidden, **options).train("training" in name)
    query = inputs.query.to(dtype).requires_grad_()
    if layout == "by id":
        tables = [torch.randn(rows, SHAPE.dim // 2).mul_(0.5).requires_grad_() for rows in TABLE_ROWS]
        ids = [torch.randint(0, rows, (inputs.history.num_rows,)) for rows in TABLE_ROWS]
        history, leaves = Gather(ids, tables, inputs.history.offsets), tables
    else:
        values = inputs.history.values if layout == "packed" else inputs.history.to_padded(SHAPE.width)
        leaves = [values.to(dtype).requires_grad_()]
        packed = layout == "packed"
        history = Jagged(leaves[0], inputs.history.offsets) if packed else Padded(leaves[0], inputs.history.lengths())
    grad, leaves = inputs.grad.to(dtype), [query, *leaves, *unit.parameters()]

    def forward():
        with torch.no_grad(), use_backend("cpu", ops=("local_activation",)):
            return unit(query, history)

    def both():
        with use_backend("cpu", ops=("local_activation",)):
            return torch.autograd.grad(unit(query, history), leaves, grad)

    return forward, both


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="timed seconds")
    harness.add_save(parser)
    options = parser.parse_args()
    inputs = inputs_of(SHAPE)
    for name in OPTIONS:
        require_equal(name)
    calls = {name: calls_of(name, inputs) for name in OPTIONS}
    rows = {name: {"option": name} for name in OPTIONS}
    for at, heading in enumerate(("forward", "forward + backward")):
        timings = harness.interleaved({name: each[at] for name, each in calls.items()}, options.seconds / 2)
        for name, timing in timings.items():
            rows[name][f"{heading}, ms"] = timing.median * 1e3
            rows[name][f"{heading}, over default"] = timing.median / timings["default"].median
    wide_console().print(harness.table(f"options of the unit, {SHAPE.name}, D=128, H=(80, 40)", list(rows.values())))
    if options.save:
        harness.save(options.save, "unit_options", SHAPE.name, list(rows.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
