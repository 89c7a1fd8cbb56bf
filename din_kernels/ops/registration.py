"""How an op of ours becomes one of torch's: its arguments become the call that a backend takes, here and nowhere else.

Implementations run outside of any trace, on values; fakes give results of the right shapes while tracing. A backward is
an op of its own, called by the autograd formula. `direct.py` calls the same implementations, and the same formula,
without torch's dispatcher in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from din_kernels import backends
from din_kernels.ops.autocast import any_autocast, without_autocast
from din_kernels.ops.saving import keep, kept
from din_kernels.ops.schemas import library


class Given(NamedTuple):
    """What the autograd formula of an op starts from."""

    call: Any  # <Op>Call
    saved: Any  # <Op>Saved
    incoming: Any  # <Op>Result: the gradients of the results, None where there is none
    needed: dict[str, Any]  # per field of `Gradient.learned` whether its gradient is asked for, as the field is
    note: Any  # by `Gradient.note`


@dataclass(frozen=True)
class Gradient:
    """How an op is differentiated, and what its backward op takes and returns."""

    saved: type[Any]  # <Op>Saved
    grads: type[Any]  # <Op>Grads
    learned: tuple[str, ...]  # fields of the call that have a gradient
    constant: tuple[str, ...]  # fields of the result that have none
    fake: Callable[[Any, Any, Any], Any]  # (call, saved, grads) -> the backward op's results, without values
    # (given, backward) -> gradients by field of `learned`; backward(grads) calls the backward op.
    formula: Callable[[Given, Callable[[Any], Any]], dict[str, Any]]
    note: Callable[[Any], Any] = lambda call: (
        None
    )  # what the formula must know of the call's tensors as they were given


@dataclass(frozen=True)
class Op:
    """An op: what it takes and returns, what it refuses, and how it is differentiated."""

    name: str
    call: type[Any]  # <Op>Call
    result: type[Any] | None  # <Op>Result; None: nothing is returned
    check: Callable[[Any], None]  # raises where values of a call would lead a kernel out of bounds
    fake: Callable[[Any], Any]  # results of a call, without values
    gradient: Gradient | None = None

    def named(self, results):
        """Results of the op by name."""
        return results if self.result is None else self.result(*results)

    def forward_by_torch(self, call, backend: str):
        """The op's results, by the op that torch knows."""
        return self.named(getattr(torch.ops.din_kernels, self.name)(*call, backend))

    def forward(self, call, backend: str):
        """The op's results, by the backend itself."""
        self.check(call)
        return _forward(self.name, call, backend)

    def backward_by_torch(self, call, saved, grads, backend: str):
        """The backward op's results, by the op that torch knows."""
        return getattr(torch.ops.din_kernels, f"{self.name}_backward")(*grads, *call, *saved, backend)

    def backward(self, call, saved, grads, backend: str):
        """The backward op's results, by the backend itself."""
        return _backward(self.name, call, saved, grads, backend)


def _forward(op: str, call, backend: str):
    kernels = backends.module(backend, op)
    if not any_autocast():
        return kernels.forward(call)
    with without_autocast(call.device):
        return kernels.forward(call)


def _backward(op: str, call, saved, grads, backend: str):
    kernels = backends.module(backend, op)
    if not any_autocast():
        return kernels.backward(call, saved, grads)
    with without_autocast(call.device):
        return kernels.backward(call, saved, grads)


def prepare(ctx, gradient: Gradient, call, result, backend: str) -> None:
    """Leaves on an autograd context what the formula takes from it."""
    ctx.backend, ctx.note = backend, gradient.note(call)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*[getattr(result, field) for field in gradient.constant])
    keep(ctx, call, gradient.saved(*[getattr(result, field) for field in gradient.saved._fields]))


def register(op: Op) -> Op:
    """Registers `op`, whose schema takes the fields of its call and the backend's name, and its backward."""
    name = f"din_kernels::{op.name}"

    def forward(*arguments):
        return op.forward(op.call(*arguments[:-1]), arguments[-1])

    library.impl(op.name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(name, lambda *arguments: op.fake(op.call(*arguments[:-1])), lib=library)
    if op.gradient is not None:
        _register_backward(op, op.gradient, name)
    return op


def _register_backward(op: Op, gradient: Gradient, name: str) -> None:
    """Registers `<op>_backward`, which takes the fields of grads, call and saved and the backend's name."""
    first = len(gradient.grads._fields)
    second = first + len(op.call._fields)

    def parts(arguments):
        return (
            op.call(*arguments[first:second]),
            gradient.saved(*arguments[second:-1]),
            gradient.grads(*arguments[:first]),
        )

    def backward(*arguments):
        call, saved, grads = parts(arguments)
        return op.backward(call, saved, grads, arguments[-1])

    def setup_context(ctx, inputs, output):
        prepare(ctx, gradient, op.call(*inputs[:-1]), op.named(output), inputs[-1])

    def formula(ctx, *incoming):
        call, saved = kept(ctx)
        asked = op.call(*ctx.needs_input_grad[:-1])
        needed = {field: getattr(asked, field) for field in gradient.learned}
        given = Given(call, saved, op.named(incoming), needed, ctx.note)
        found = gradient.formula(given, lambda grads: op.backward_by_torch(call, saved, grads, ctx.backend))
        return *op.call(*map(_no_gradient, call))._replace(**found), None

    def no_double_backward(ctx, *_):
        raise NotImplementedError(
            f"{op.name} has no double backward: its gradients cannot be differentiated again; "
            "use din_kernels.use_backend('reference') for that"
        )

    library.impl(f"{op.name}_backward", backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{name}_backward", lambda *arguments: gradient.fake(*parts(arguments)), lib=library)
    torch.library.register_autograd(name, formula, setup_context=setup_context, lib=library)
    torch.library.register_autograd(f"{name}_backward", no_double_backward, lib=library)


def _no_gradient(field):
    """What stands for the gradient of a field that has none: one None per tensor of a list; an empty list passes for a
    list of tensors."""
    if isinstance(field, list) and (not field or isinstance(field[0], torch.Tensor)):
        return [None] * len(field)
    return None
