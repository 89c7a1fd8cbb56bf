"""Dice in training on a GPU, forward and backward: ours beside eager PyTorch and torch.compile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from din_kernels.backends import use_backend
from din_kernels.benchmarking import gpu, gpu_profile
from din_kernels.nn import Dice

SHAPES = ((1_638_400, 80), (16_384, 200))
DTYPES = (torch.bfloat16, torch.float32)
# Tensors of x's size that the floor counts. Our kernels read or write eight: x; x and y; x and dy; x, dy and dx.
PASSES = 9
EAGER, COMPILED = "eager", "torch.compile"
Call = Callable[[], Any]


class BatchNormDice(nn.Module):
    """Dice as libraries write it: batch norm without affine, then elementwise operations."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(self.norm(x))
        alpha = self.alpha.to(x.dtype)
        return p * x + alpha * (1 - p) * x


def variants(
    shape: tuple[int, int], dtype: torch.dtype, backends: Sequence[str], device: str = "cuda"
) -> dict[str, Call]:
    """Calls that return y, dx and dalpha by name."""
    rows, channels = shape
    generator = torch.Generator(device).manual_seed(0)
    x, grad = (torch.randn(rows, channels, generator=generator, device=device, dtype=dtype) for _ in range(2))
    x.requires_grad_()
    alpha = torch.linspace(-0.5, 0.5, channels, device=device)

    def both(module: Any, name: str | None = None) -> Call:
        module = module.to(device)
        leaf = next(value for key, value in module.named_parameters() if key.endswith("alpha"))
        leaf.data.copy_(alpha)

        def run():
            y = module(x)
            return y.detach(), *torch.autograd.grad(y, (x, leaf), grad)

        if name is None:
            return run

        def ours():
            with use_backend(name, ops=("dice",)):
                return run()

        return ours

    made = {name: both(Dice(channels), name) for name in backends}
    made[EAGER] = both(BatchNormDice(channels))
    made[COMPILED] = both(torch.compile(BatchNormDice(channels), dynamic=False))
    return made


def compile_all(backends: Sequence[str]) -> None:
    """Runs every variant that compiles once."""
    for shape in SHAPES:
        for dtype in DTYPES:
            torch._dynamo.reset()
            for name, call in variants(shape, dtype, backends).items():
                if name != EAGER:
                    call()


def benchmark(
    deadline: float, backends: Sequence[str], shapes: Sequence[tuple[int, int]] = SHAPES, device: str = "cuda"
) -> Iterator[dict[str, Any]]:
    """A row per shape and dtype: variants with time, kernels' time, host's time and memory, and the floor.

    The floor is PASSES passes over x at the rate of a copy. Ours are held to the eager form in float32 first.
    """
    for shape in shapes:
        for dtype in DTYPES:
            about = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
            if time.monotonic() > deadline:
                yield about | {"skipped": "no time left"}
            else:
                torch._dynamo.reset()
                yield about | _row(shape, dtype, backends, device)


def _row(shape, dtype, backends, device) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    runs, skipped = {}, {}
    expected = variants(shape, torch.float32, (), device)[EAGER]()
    for name, call in variants(shape, dtype, backends, device).items():
        try:
            if name in backends and dtype == torch.float32:
                _require_close(call(), expected)
            call()
            found[name] = {"peak_mb": gpu.peak_mb(call)}
        except Exception as error:  # what fails must not hide the others
            skipped[name] = gpu.reason_of(error)
        else:
            runs[name] = call
    for name, times in gpu.timed(runs, backends).items():
        found[name] |= times | gpu_profile.profiled(runs[name])
    bytes_of_x = shape[0] * shape[1] * dtype.itemsize
    return {"variants": found, "skipped": skipped, "floor_ms": gpu.bytes_ms(PASSES * bytes_of_x)}


def _require_close(found, expected) -> None:
    for what, ours, theirs in zip(("y", "grad x", "grad alpha"), found, expected, strict=True):
        off = ((ours.float() - theirs).abs().max() / theirs.abs().max()).item()
        if not off <= 1e-4:
            raise AssertionError(f"{what} must be within 1e-4 of the eager form in float32, got {off:.2g}")
