"""Calls that go straight to a backend, through one function of autograd.

What torch's dispatcher and `torch.library` do around an op serves those who look at calls or rewrite them: traces,
modes, transforms, tensors of other classes. Where there is none of them, the same implementation is called without
dispatcher and library, which would take longer than a small call itself. The op that torch knows serves all others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._device import DeviceContext

from din_kernels.backends.calls import TENSOR_FIELDS
from din_kernels.ops.registration import Given, Op, prepare
from din_kernels.ops.saving import kept

_CLASSES = (torch.Tensor, torch.nn.Parameter)
_C = torch._C
_dispatch_keys = torch._C._dispatch_keys


def run(op: Op, call, backend: str):
    """The results of `op`, as `op.result`, from the backend itself or by the op that torch knows."""
    if not straight(_tensors(call)):
        return op.forward_by_torch(call, backend)
    if op.gradient is not None and torch.is_grad_enabled():
        learned = _flat(op.gradient.learned, call)
        if any([each.requires_grad for each in learned]):
            return op.named(_function(op)(call, backend, *learned))
    return op.forward(call, backend)


def _tensors(given) -> list[torch.Tensor | None]:
    """All tensors in the fields of a named tuple."""
    single, lists = TENSOR_FIELDS[type(given)]
    found = [given[at] for at in single]
    for at in lists:
        found += given[at]
    return found


# --- who may look at a call -------------------------------------------------------------------------------------------


def straight(tensors: Iterable[torch.Tensor | None]) -> bool:
    """Whether nobody looks at calls now, and the memory of `tensors` holds their numbers."""
    if torch.compiler.is_compiling() or watched():
        return False
    for tensor in tensors:
        if tensor is not None:
            keys = _dispatch_keys(tensor).raw_repr()
            if type(tensor) not in _CLASSES or (keys not in _plain_keys and not _is_plain(keys, tensor)):
                return False
    return True


def watched() -> bool:
    """Whether a mode, a transform or a trace other than torch.compile's looks at the calls of ops.

    Forward-mode AD does not come here, since `backends.select` lets the reference alone follow it.
    """
    if _C._len_torch_dispatch_stack() or _C._are_functorch_transforms_active() or _C._get_tracing_state() is not None:
        return True
    modes = _C._len_torch_function_stack()
    return modes > 0 and not all(_is_default_device(_C._get_function_stack_at(at)) for at in range(modes))


def _is_default_device(mode) -> bool:
    """Whether a mode is torch.device as a context: it looks at factories alone, and backends name the device."""
    return type(mode) is DeviceContext


# Dispatch keys of tensors whose memory holds their numbers, one after the other at strides, and which autograd at most
# follows: not those of wrappers (functorch, functionalization), zero tensors, negated views, sparse or nested tensors.
_plain_keys: set[int] = set()


def _is_plain(keys: int, tensor: torch.Tensor) -> bool:
    """Whether the dispatch keys are those of a new tensor on the same device; the answer is kept."""
    if tensor.device.type not in ("cpu", "cuda"):
        return False
    for mode in (False, True):
        with torch.inference_mode(mode):
            _plain_keys.add(torch._C._dispatch_keys(torch.empty(0, device=tensor.device)).raw_repr())
    return keys in _plain_keys


# --- the function of autograd -----------------------------------------------------------------------------------------


def _flat(fields: Sequence[str], call, values: dict[str, Any] | None = None) -> list[Any]:
    """The tensors in some fields of `call`, one after the other; or for each of them its part of `values` by field."""
    found: list[Any] = []
    for field in fields:
        given = getattr(call, field)
        value = given if values is None else values[field]
        if isinstance(given, list):
            found += value
        elif given is not None:
            found.append(value)
    return found


def _nested(fields: Sequence[str], call, values: Sequence[Any]) -> dict[str, Any]:
    """By field what `_flat` has put one after the other."""
    found: dict[str, Any] = {}
    at = 0
    for field in fields:
        given = getattr(call, field)
        if isinstance(given, list):
            found[field] = values[at : at + len(given)]
            at += len(given)
        elif given is not None:
            found[field] = values[at]
            at += 1
    return found


@functools.cache
def _function(op: Op) -> Callable[..., Any]:
    """The function of autograd that calls the backend for `op`, by its name."""
    gradient = op.gradient
    assert gradient is not None

    def forward(ctx, call, backend, *_learned):
        result = op.forward(call, backend)
        prepare(ctx, gradient, call, result, backend)
        return tuple(result)

    def backward(ctx, *incoming):
        call, saved = kept(ctx)
        # Gradients that are to be differentiated again come from the op that torch knows, which says that they cannot.
        # What was saved went straight to the forward; hooks may have made tensors of another class of it.
        alone = not torch.is_grad_enabled() and straight(incoming)
        if alone:
            alone = all([each is None or type(each) in _CLASSES for each in (*_tensors(call), *_tensors(saved))])
        by = op.backward if alone else op.backward_by_torch
        needed = _nested(gradient.learned, call, ctx.needs_input_grad[2:])
        given = Given(call, saved, op.named(incoming), needed, ctx.note)
        found = gradient.formula(given, lambda grads: by(call, saved, grads, ctx.backend))
        return None, None, *_flat(gradient.learned, call, found)

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    made: Any = type(op.name, (torch.autograd.Function,), members)
    # Function.apply asks for transforms and unwraps their tensors, of which there are none here, and then calls this.
    return super(torch.autograd.Function, made).apply
