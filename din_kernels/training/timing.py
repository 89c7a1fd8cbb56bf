"""Where the time of a training step goes: data, embedding, unit, top MLP, optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

PHASES = ("data", "embedding", "unit", "top_mlp", "optimizer", "other")


class Stopwatch:
    """Gives every moment to one phase; entering a phase ends the one before.

    In backward the phases follow each other in reverse, at the tensors that crossed a `boundary`. The optimizer and the
    loader enter theirs from the loop.

    Args:
        wait: called before the clock is read, such as torch.cuda.synchronize where kernels run asynchronously.

    Attributes:
        seconds: per phase of `PHASES`.
    """

    def __init__(self, wait: Callable[[], None] | None = None):
        self._wait = wait or (lambda: None)
        self.reset()

    def reset(self) -> None:
        """All phases to 0, and the current one to "other"."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "other", time.perf_counter()

    def enter(self, phase: str) -> None:
        """From now on time belongs to `phase`."""
        self._wait()
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def boundary(self, phase: str, backward: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Enters `phase`; when the gradients of `tensors` are complete in backward, enters `backward`."""
        self.enter(phase)
        if not any(tensor.requires_grad for tensor in tensors):
            return tensors
        return _Boundary.apply(self, backward, *tensors)


class _Boundary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stopwatch, backward, *tensors):
        ctx.stopwatch, ctx.phase = stopwatch, backward
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx, *grads):
        ctx.stopwatch.enter(ctx.phase)
        return None, None, *grads
