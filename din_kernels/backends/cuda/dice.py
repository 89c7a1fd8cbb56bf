"""`dice` on a GPU."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import DiceCall, DiceGradients, DiceGrads, DiceResult, DiceSaved
from din_kernels.backends.compiled import Description, room_for_statistics
from din_kernels.backends.cuda import compiled, refuses_tensors, stream_of, workspace


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    return refuses_tensors(request)


def forward(call: DiceCall) -> DiceResult:
    """Kernel call of the op's forward."""
    kernels, described = compiled(), Description()
    y = torch.empty_like(call.x, memory_format=torch.contiguous_format)
    count = torch.zeros((), dtype=torch.int64, device=call.device)
    result = DiceResult(y, *room_for_statistics(call), count)
    if y.numel():
        launch = {"workspace": described.array(workspace("dice", y, kernels.dice_workspace(*y.shape)))}
        with stream_of(y) as stream:
            kernels.dice_forward(described.of(call), described.of(result), launch, stream)
    elif call.training:
        result.mean.zero_(), result.var.fill_(1)
    return result


def backward(call: DiceCall, saved: DiceSaved, grads: DiceGrads) -> DiceGradients:
    """Kernel call of the op's backward."""
    kernels, described, x = compiled(), Description(), call.x
    found = DiceGradients(
        x=torch.empty_like(x, memory_format=torch.contiguous_format),
        alpha=torch.zeros_like(call.alpha, memory_format=torch.contiguous_format),
        weight=call.alpha.new_zeros(0 if call.weight is None else call.weight.shape),
        bias=call.alpha.new_zeros(0 if call.bias is None else call.bias.shape),
    )
    if x.numel():
        launch = {
            "count": described.array(torch.empty((), dtype=torch.int64, device=call.device)),
            "workspace": described.array(workspace("dice", x, kernels.dice_workspace(*x.shape))),
        }
        with stream_of(x) as stream:
            kernels.dice_backward(*map(described.of, (call, saved, grads, found)), launch, stream)
    return found
