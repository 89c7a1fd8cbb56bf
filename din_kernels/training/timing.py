"""Where the time of a training step goes: data, embedding, unit, top MLP, optimizer.

The models know nothing of it: the stopwatch hooks itself to their parts.

    forward    embedding | unit | top_mlp            unit: from the call of an activation unit to its return
    backward   top_mlp | unit | embedding            unit: from the gradient of its result to those of its arguments
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook

from din_kernels.models.base import Model
from din_kernels.nn.local_activation import LocalActivationUnit

PHASES = ("data", "embedding", "unit", "top_mlp", "optimizer", "other")


class Stopwatch:
    """Gives every moment to one phase; entering a phase ends the one before.

    The loader and the optimizer enter theirs from the loop, a model's parts theirs while it is `attached`. A model
    without activation units (sum pooling) spends no time in "unit": its sums are part of the embedding.

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

    @contextlib.contextmanager
    def attached(self, model: Model) -> Iterator[None]:
        """Within the block, the steps of `model` enter their phases, forward and backward."""
        units = [each for each in model.modules() if isinstance(each, LocalActivationUnit)]
        handles = [model.register_forward_pre_hook(lambda *_: self.enter("embedding"))]
        if not units:
            handles.append(model.top.register_forward_pre_hook(self._before("top_mlp", "embedding")))
        for unit in units:
            handles.append(unit.register_forward_pre_hook(self._before("unit", "embedding")))
            handles.append(unit.register_forward_hook(self._after("top_mlp", "unit")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, phase: str, backward: str) -> Callable[..., None]:
        """A forward pre-hook: enters `phase`, and `backward` once the gradients of all arguments are complete."""

        def hook(module: nn.Module, arguments: tuple) -> None:
            self.enter(phase)
            self._in_backward(backward, arguments)

        return hook

    def _after(self, phase: str, backward: str) -> Callable[..., None]:
        """A forward hook: enters `phase`, and `backward` once the gradient of the result is complete."""

        def hook(module: nn.Module, arguments: tuple, result: torch.Tensor | tuple) -> None:
            self.enter(phase)
            self._in_backward(backward, result if isinstance(result, tuple) else (result,))

        return hook

    def _in_backward(self, phase: str, values: tuple) -> None:
        tensors = [each for each in values if isinstance(each, torch.Tensor) and each.requires_grad]
        if tensors:
            register_multi_grad_hook(tensors, lambda _: self.enter(phase))
