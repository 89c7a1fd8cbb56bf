"""`dice` in Triton: two passes over x in training (statistics, then y), one in evaluation.

Sums run over the valid rows, one part per program, added in a fixed order.
"""

from __future__ import annotations

import torch
import triton

from din_kernels.backends import Request
from din_kernels.backends.calls import DiceCall, DiceGradients, DiceGrads, DiceResult, DiceSaved
from din_kernels.backends.triton import chips, on_device_of, refuses_tensors
from din_kernels.backends.triton.dice.backward import backward_kernel, sums_kernel
from din_kernels.backends.triton.dice.forward import forward_kernel, statistics_kernel
from din_kernels.backends.triton.dice.tile import COLUMNS, ROWS, Batch, Channels

PROGRAMS_PER_MULTIPROCESSOR = 4
TILE = {"ROWS": ROWS, "COLUMNS": COLUMNS}


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    return refuses_tensors(request)


def _grids(x: torch.Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """One program per tile, and as many as stay on the chip."""
    tiles, across = triton.cdiv(x.shape[0], ROWS), triton.cdiv(x.shape[1], COLUMNS)
    most = max(1, chips.multiprocessors(x.device) * PROGRAMS_PER_MULTIPROCESSOR // across)
    return (tiles, across), (min(tiles, most), across)


def _batch(call: DiceCall) -> Batch:
    return Batch(call.x.contiguous(), None if call.mask is None else call.mask.contiguous().view(torch.uint8))


def _channels(call: DiceCall, mean: torch.Tensor, var: torch.Tensor) -> Channels:
    """The parameters as fp32."""
    given = (call.alpha, call.weight, call.bias, mean, var)
    return Channels(*(None if each is None else each.float().contiguous() for each in given))


def _statistics(batch: Batch, count: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch mean and biased variance [C] fp32; 0 and 1 where no row is valid."""
    rows, channels = batch.x.shape
    counts = torch.empty(grid[0], dtype=torch.float32, device=batch.x.device)
    means, squares = (counts.new_empty(grid[0], channels) for _ in range(2))
    statistics_kernel[grid](batch, counts, means, squares, rows, channels, **TILE)
    counts, means, squares = counts.double().unsqueeze(1), means.double(), squares.double()
    total = counts.sum().clamp(min=1)
    mean = (counts * means).sum(0) / total
    var = (squares + counts * (means - mean).square()).sum(0) / total
    return mean.float(), torch.where(count > 0, var, 1.0).float()


def forward(call: DiceCall) -> DiceResult:
    """Kernel calls of the op's forward."""
    # The count is filled on the device: a number copied there would wait for it.
    count = torch.full((), call.x.shape[0], device=call.x.device) if call.mask is None else call.mask.sum()
    batch = _batch(call)
    y = torch.empty_like(batch.x)
    if call.training:
        mean, var = torch.zeros_like(call.alpha), torch.ones_like(call.alpha)
    else:
        mean, var = call.mean.clone(), call.var.clone()
    if y.numel():
        every, some = _grids(batch.x)
        with on_device_of(batch.x):
            if call.training:
                mean, var = _statistics(batch, count, some)
            forward_kernel[every](batch, _channels(call, mean, var), y, *batch.x.shape, call.eps, **TILE)
    return DiceResult(y, mean, var, count)


def backward(call: DiceCall, saved: DiceSaved, grads: DiceGrads) -> DiceGradients:
    """Kernel calls of the op's backward."""
    batch, channels = _batch(call), _channels(call, saved.mean, saved.var)
    grad_y = grads.y.contiguous()
    grad_x, sums = torch.empty_like(batch.x), channels.alpha.new_zeros(3, batch.x.shape[1])
    if batch.x.numel():
        every, some = _grids(batch.x)
        size = (*batch.x.shape, call.eps)
        with on_device_of(batch.x):
            parts = sums.new_empty(some[0], *sums.shape)
            sums_kernel[some](grad_y, batch, channels, parts, *size, **TILE)
            sums = parts.sum(0)
            averages = None
            if call.training:
                valid = max(batch.x.shape[0], 1) if call.mask is None else call.mask.sum().clamp(min=1)
                averages = sums / valid
            backward_kernel[every](grad_y, batch, channels, averages, grad_x, *size, **TILE)
    nothing = sums.new_empty(0)
    d_weight = nothing if call.weight is None else sums[1].clone()
    d_bias = nothing.clone() if call.bias is None else sums[2].clone()
    return DiceGradients(grad_x, sums[0].clone(), d_weight, d_bias)
