"""Dice in training, forward and backward: ours, and BatchNorm1d with elementwise operations, eager and compiled.

Freed memory stays with the process, for all variants alike: glibc maps every tensor of 33 MB anew, and page faults then
take longer than the kernels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import nn

from din_kernels.benchmarking import harness
from din_kernels.commands.console import wide_console
from din_kernels.nn import Dice

SHAPES = ((102_400, 80), (8192, 200), (8, 200))  # the last: what a call costs beside its work
FUSED, EAGER, COMPILED = "fused", "BatchNorm1d, eager", "BatchNorm1d, compiled"


class BatchNormDice(nn.Module):
    """Dice as libraries write it: batch norm without affine, then elementwise operations."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(self.norm(x))
        return p * x + self.alpha * (1 - p) * x


def variants(channels: int) -> dict[str, nn.Module]:
    """Modules by name, with the same alpha."""
    made = {FUSED: Dice(channels), EAGER: BatchNormDice(channels), COMPILED: BatchNormDice(channels)}
    alpha = torch.linspace(-0.5, 0.5, channels)
    for module in made.values():
        module.alpha.data.copy_(alpha)
    made[COMPILED] = torch.compile(made[COMPILED], dynamic=False)
    return made


def both(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and gradients by name."""
    y = module(x)
    alpha = next(value for name, value in module.named_parameters() if name.endswith("alpha"))
    grad_x, grad_alpha = torch.autograd.grad(y, (x, alpha), grad)
    return {"y": y.detach(), "grad x": grad_x, "grad alpha": grad_alpha}


def assert_equal(made: dict[str, nn.Module], x: torch.Tensor, grad: torch.Tensor) -> None:
    """Every variant against the eager one in float64."""
    wide = BatchNormDice(x.shape[1]).double()
    wide.alpha.data.copy_(made[EAGER].alpha)
    exact = both(wide, x.detach().double().requires_grad_(), grad.double())
    own = {name: value.double() for name, value in both(made[EAGER], x, grad).items()}
    for name, module in made.items():
        # A sum of 100,000 products: the eager peer's own rounding is part of the bound, another order may take twice.
        harness.require_equal(name, both(module, x, grad), own, exact, allowed=2.0)


def compare(rows: int, channels: int, seconds: float) -> list[dict]:
    """One row per variant: milliseconds of forward and backward in training, and of a forward in evaluation.

    The floor in training is nine tensors of x's size, read or written at the rate of a copy timed in the same rounds: x
    for the statistics; x and y; x, grad y and grad x; at last x again, and grad x, read and written.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, channels, generator=generator).requires_grad_()
    grad = torch.randn(rows, channels, generator=generator)
    made = variants(channels)
    assert_equal(made, x, grad)

    def evaluated(module: nn.Module) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with torch.no_grad():
                return module(x)

        return call

    times, copied = {}, torch.empty(x.shape)
    for what in ("training", "evaluation"):
        for module in made.values():
            module.train(what == "training")
        calls = {
            name: (lambda module=module: both(module, x, grad)) if what == "training" else evaluated(module)
            for name, module in made.items()
        }
        calls["copy"] = lambda: copied.copy_(x.detach())
        times[what] = harness.interleaved(calls, seconds / 2, (10, 1000), 3)
    copy = times["training"]["copy"].median * 1e3
    best = {what: each[FUSED].median for what, each in times.items()}
    return [
        {
            "variant": name,
            "shape": f"[{rows}, {channels}]",
            "training, ms": times["training"][name].median * 1e3,
            "over fused": times["training"][name].median / best["training"],
            "floor, ms": 4.5 * copy,
            "evaluation, ms": times["evaluation"][name].median * 1e3,
            "over fused in evaluation": times["evaluation"][name].median / best["evaluation"],
        }
        for name in made
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="timed seconds")
    harness.add_save(parser)
    options = parser.parse_args()
    harness.keep_freed_memory()
    rows = [row for shape in SHAPES for row in compare(*shape, options.seconds / len(SHAPES))]
    wide_console().print(harness.table("Dice", rows))
    if options.save:
        harness.save(options.save, "dice", "training", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
