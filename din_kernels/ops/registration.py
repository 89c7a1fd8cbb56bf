"""How an op of ours becomes one of torch's: its arguments become the call that a backend takes, here and nowhere else.

Implementations run outside of any trace, on values; fakes give results of the right shapes while tracing. A backward is
an op of its own, called by the autograd formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from din_kernels import backends
from din_kernels.ops.autocast import without_autocast
from din_kernels.ops.schemas import library


def register(op: str, call: type, check: Callable[[Any], None], fake: Callable[[Any], Any]) -> None:
    """Registers `op`, whose schema takes the fields of `call` and the backend's name.

    Args:
        check: raises where values of a call would lead a kernel out of bounds.
        fake: results of a call, without values.
    """

    def _forward(*arguments):
        given = call(*arguments[:-1])
        check(given)
        with without_autocast(given.device):
            return backends.module(arguments[-1], op).forward(given)

    library.impl(op, _forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"din_kernels::{op}", lambda *arguments: fake(call(*arguments[:-1])), lib=library)


def register_backward(
    op: str,
    call: type[Any],
    saved: type[Any],
    grads: type[Any],
    fake: Callable[[Any, Any, Any], Any],
    setup_context: Callable[..., None],
    formula: Callable[..., tuple],
) -> None:
    """Registers `<op>_backward`, whose schema takes the fields of `grads`, `call` and `saved` and the backend's name.

    Args:
        fake: the gradients without values, of (call, saved, grads).
        setup_context, formula: as `torch.library.register_autograd` takes them for `op`.
    """
    first = len(grads._fields)
    second = first + len(call._fields)

    def parts(arguments):
        return call(*arguments[first:second]), saved(*arguments[second:-1]), grads(*arguments[:first])

    def _backward(*arguments):
        given, left, towards = parts(arguments)
        with without_autocast(given.device):
            return backends.module(arguments[-1], op).backward(given, left, towards)

    def no_double_backward(ctx, *_):
        raise NotImplementedError(
            f"{op} has no double backward: its gradients cannot be differentiated again; "
            "use din_kernels.use_backend('reference') for that"
        )

    name = f"din_kernels::{op}"
    library.impl(f"{op}_backward", _backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{name}_backward", lambda *arguments: fake(*parts(arguments)), lib=library)
    torch.library.register_autograd(name, formula, setup_context=setup_context, lib=library)
    torch.library.register_autograd(f"{name}_backward", no_double_backward, lib=library)


class _Tensors:
    """Stands for a list of so many tensors among the fields that `keep` leaves on a context."""

    def __init__(self, count: int):
        self.count = count


_TENSOR = object()  # stands for one


def keep(ctx, *parts) -> None:
    """Keeps named tuples for the backward: their tensors as autograd wants them kept, the rest beside.

    Autograd saves no inference tensor, since it could not notice a later change of it: such a tensor (a frozen table,
    ids that were made under `torch.inference_mode`) stays beside as it is, and must not be changed before the backward.
    """
    tensors: list[torch.Tensor] = []
    ctx.parts = []
    for part in parts:
        fields: list[Any] = []
        for field in part:
            if isinstance(field, torch.Tensor) and not field.is_inference():
                tensors.append(field)
                fields.append(_TENSOR)
            elif _are_tensors(field) and not any(each.is_inference() for each in field):
                tensors += field
                fields.append(_Tensors(len(field)))
            else:
                fields.append(field)
        ctx.parts.append((type(part), fields))
    ctx.save_for_backward(*tensors)


def _are_tensors(field) -> bool:
    return isinstance(field, list) and bool(field) and isinstance(field[0], torch.Tensor)


def kept(ctx) -> list[Any]:
    """What `keep` kept."""
    tensors = iter(ctx.saved_tensors)

    def restored(field):
        if field is _TENSOR:
            return next(tensors)
        return [next(tensors) for _ in range(field.count)] if isinstance(field, _Tensors) else field

    return [kind(*map(restored, fields)) for kind, fields in ctx.parts]
