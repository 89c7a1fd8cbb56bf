"""`dice` on a GPU: tensors to pointers for the CUDA kernels."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import DiceCall, DiceGradients, DiceGrads, DiceResult, DiceSaved
from din_kernels.backends.cuda import compiled, name_of, pointer, refuses_tensors, stream_of, workspace


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
    kernels, call = compiled(), _contiguous(call)
    mean, var = (torch.empty_like(call.alpha) if call.training else each.clone() for each in (call.mean, call.var))
    y, count = torch.empty_like(call.x), torch.zeros((), dtype=torch.int64, device=call.device)
    if y.numel():
        scratch = workspace("dice", y, kernels.dice_workspace(*y.shape))
        with stream_of(y) as stream:
            outputs = map(pointer, (y, count, scratch))
            kernels.dice_forward(*_inputs(call, mean, var), *outputs, stream)
    elif call.training:
        mean.zero_(), var.fill_(1)
    return DiceResult(y, mean, var, count)


def backward(call: DiceCall, saved: DiceSaved, grads: DiceGrads) -> DiceGradients:
    """Kernel call of the op's backward."""
    kernels, call, grad_y = compiled(), _contiguous(call), grads.y.contiguous()
    mean, var = saved.mean.contiguous(), saved.var.contiguous()
    found = DiceGradients(
        x=torch.empty_like(call.x),
        alpha=torch.zeros_like(call.alpha),
        weight=call.alpha.new_zeros(0 if call.weight is None else call.weight.shape),
        bias=call.alpha.new_zeros(0 if call.bias is None else call.bias.shape),
    )
    count = torch.empty((), dtype=torch.int64, device=call.device)
    if call.x.numel():
        scratch = workspace("dice", call.x, kernels.dice_workspace(*call.x.shape))
        affine = (None if call.weight is None else found.weight, None if call.bias is None else found.bias)
        with stream_of(call.x) as stream:
            outputs = map(pointer, (grad_y, found.x, found.alpha, *affine, count, scratch))
            kernels.dice_backward(*_inputs(call, mean, var), *outputs, stream)
    return found
