"""`dice` on the CPU: tensors to pointers for the compiled core."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import DiceCall, DiceGradients, DiceGrads, DiceResult, DiceSaved
from din_kernels.backends.cpu import name_of, pointer, refuses_tensors


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    return refuses_tensors(request)


def _contiguous(call: DiceCall) -> DiceCall:
    return DiceCall(*(each.contiguous() if isinstance(each, torch.Tensor) else each for each in call))


def _inputs(call: DiceCall, mean: torch.Tensor, var: torch.Tensor) -> tuple:
    """What both kernels take first; mean and var are written in a forward that trains."""
    pointers = map(pointer, (call.x, call.mask, call.alpha, call.weight, call.bias, mean, var))
    return name_of(call.x.dtype), *call.x.shape, *pointers, call.eps, call.training


def forward(call: DiceCall) -> DiceResult:
    """Kernel call of the op's forward."""
    from din_kernels import _cpu

    call = _contiguous(call)
    mean, var = (torch.empty_like(call.alpha) if call.training else each.clone() for each in (call.mean, call.var))
    y = torch.empty_like(call.x)
    count = _cpu.dice_forward(*_inputs(call, mean, var), pointer(y), torch.get_num_threads())
    return DiceResult(y, mean, var, torch.tensor(count))


def backward(call: DiceCall, saved: DiceSaved, grads: DiceGrads) -> DiceGradients:
    """Kernel call of the op's backward."""
    from din_kernels import _cpu

    call, grad_y = _contiguous(call), grads.y.contiguous()
    mean, var = saved.mean.contiguous(), saved.var.contiguous()
    found = DiceGradients(
        x=torch.empty_like(call.x),
        alpha=torch.empty_like(call.alpha),
        weight=call.alpha.new_empty(0 if call.weight is None else call.weight.shape),
        bias=call.alpha.new_empty(0 if call.bias is None else call.bias.shape),
    )
    _cpu.dice_backward(
        *_inputs(call, mean, var),
        pointer(grad_y),
        pointer(found.x),
        pointer(found.alpha),
        pointer(None if call.weight is None else found.weight),
        pointer(None if call.bias is None else found.bias),
        torch.get_num_threads(),
    )
    return found
