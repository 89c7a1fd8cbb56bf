"""`dice` on the CPU."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import DiceCall, DiceGradients, DiceGrads, DiceResult, DiceSaved
from din_kernels.backends.compiled import Description, room_for_statistics
from din_kernels.backends.cpu import refuses_tensors


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    return refuses_tensors(request)


def forward(call: DiceCall) -> DiceResult:
    """Kernel call of the op's forward."""
    from din_kernels import _cpu

    y = torch.empty_like(call.x, memory_format=torch.contiguous_format)
    result = DiceResult(y, *room_for_statistics(call), count=torch.empty((), dtype=torch.int64, device="cpu"))
    described = Description()
    _cpu.dice_forward(described.of(call), described.of(result), torch.get_num_threads())
    return result


def backward(call: DiceCall, saved: DiceSaved, grads: DiceGrads) -> DiceGradients:
    """Kernel call of the op's backward."""
    from din_kernels import _cpu

    found = DiceGradients(
        x=torch.empty_like(call.x, memory_format=torch.contiguous_format),
        alpha=torch.empty_like(call.alpha, memory_format=torch.contiguous_format),
        weight=call.alpha.new_empty(0 if call.weight is None else call.weight.shape),
        bias=call.alpha.new_empty(0 if call.bias is None else call.bias.shape),
    )
    described = Description()
    _cpu.dice_backward(*map(described.of, (call, saved, grads, found)), torch.get_num_threads())
    return found
