"""`dice` in Triton: two passes over x in training (statistics, then y), one in evaluation; two in the backward.

Sums run over the valid rows, one part per program, added in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import DiceCall, DiceGradients, DiceGrads, DiceResult, DiceSaved
from din_kernels.backends.triton import cdiv, chips, on_device_of, refuses_tensors
from din_kernels.backends.triton.dice.backward import backward_kernel, sums_kernel
from din_kernels.backends.triton.dice.forward import forward_kernel, statistics_kernel
from din_kernels.backends.triton.dice.gate import Parameters
from din_kernels.backends.triton.dice.tile import Tiling, tiling
from din_kernels.backends.triton.launch import launch


class Shape(NamedTuple):
    """How a kernel is launched."""

    vector: int  # numbers of x that a thread loads at once
    rows: int  # groups of a tile
    warps: int
    resident: int  # programs per multiprocessor


# By kernel and bytes per number. Kernels that sum run one large program per multiprocessor, since one of them reads the
# parts of all.
SHAPES = {
    ("statistics", 2): Shape(4, 8, 32, 1),
    ("statistics", 4): Shape(4, 4, 32, 1),
    ("forward", 2): Shape(8, 4, 8, 4),
    ("forward", 4): Shape(4, 4, 8, 4),
    ("sums", 2): Shape(4, 2, 32, 1),
    ("sums", 4): Shape(4, 2, 32, 1),
    ("backward", 2): Shape(4, 4, 8, 4),
    ("backward", 4): Shape(4, 2, 8, 4),
}


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    return refuses_tensors(request)


def _launch(x: torch.Tensor, kernel: str, mask: torch.Tensor | None) -> tuple[Tiling, tuple[int, int]]:
    """Tiles, and the grid of programs that stay on the chip."""
    shape = SHAPES[kernel, x.element_size()]
    # A mask takes a 64-bit address for each number of a tile: more groups of a tile would spill.
    rows = shape.rows if mask is None else max(1, shape.rows // 4)
    tiles = tiling(x.shape[1], shape.vector, shape.warps, rows)
    most = max(1, chips.multiprocessors(x.device) * shape.resident // tiles.blocks)
    return tiles, (min(cdiv(x.shape[0], tiles.rows_of_tile), most), tiles.blocks)


def _scratch(x: torch.Tensor, shape: Tiling, programs: int, planes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for lanes [programs, planes, REPEAT C] and for parts [programs, planes, C]."""
    channels = x.shape[1]
    lanes = cdiv(programs * planes * shape.repeat * channels, 4) * 4  # parts begin at a multiple of 16 bytes
    both = torch.empty(lanes + programs * planes * channels, dtype=torch.float32, device=x.device)
    return both[:lanes], both[lanes:]


def _mask(call: DiceCall) -> torch.Tensor | None:
    return None if call.mask is None else call.mask.contiguous().view(torch.uint8)


def _parameters(call: DiceCall) -> Parameters:
    return Parameters(*(None if each is None else each.contiguous() for each in (call.alpha, call.weight, call.bias)))


def _statistics(x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Batch mean and biased variance [C] fp32, 0 and 1 where no row is valid, and the number of valid rows."""
    shape, grid = _launch(x, "statistics", mask)
    count = torch.zeros((), dtype=torch.int64, device=x.device)
    mean, var = (torch.empty(x.shape[1], dtype=torch.float32, device=x.device) for _ in range(2))
    scratch, parts = _scratch(x, shape, grid[0], 3)
    taken = (x, mask, count, mean, var, scratch, parts, x.shape[0])
    launch(statistics_kernel, grid, taken, shape.constants, shape.options)
    return mean, var, count


def forward(call: DiceCall) -> DiceResult:
    """Kernel calls of the op's forward."""
    x, mask = call.x.contiguous(), _mask(call)
    y = torch.empty_like(x)
    with on_device_of(x):
        if call.training and y.numel():
            mean, var, count = _statistics(x, mask)
        else:
            # The count is filled on the device: a number copied there would wait for it.
            count = torch.full((), x.shape[0], device=x.device) if call.mask is None else call.mask.sum()
            if call.training:
                mean, var = torch.zeros_like(call.alpha), torch.ones_like(call.alpha)
            else:
                mean, var = call.mean.clone(), call.var.clone()
        if y.numel():
            shape, grid = _launch(x, "forward", mask)
            fast = chips.fast_tanh(x.device, x.dtype)
            taken = (x, mask, _parameters(call), mean, var, y, x.shape[0], call.eps)
            launch(forward_kernel, grid, taken, {"FAST": fast, **shape.constants}, shape.options)
    return DiceResult(y, mean, var, count)


def backward(call: DiceCall, saved: DiceSaved, grads: DiceGrads) -> DiceGradients:
    """Kernel calls of the op's backward."""
    x, mask, given = call.x.contiguous(), _mask(call), _parameters(call)
    make = torch.empty if x.numel() else torch.zeros
    none = {"dtype": torch.float32, "device": x.device}
    sums = [make(0 if each is None else x.shape[1], **none) for each in (call.alpha, call.weight, call.bias)]
    grad_x = torch.empty_like(x)
    if x.numel():
        grad_y = grads.y.contiguous()
        shape, grid = _launch(x, "sums", mask)
        through = torch.empty(2, x.shape[1], **none) if call.training else None
        ticket = torch.zeros((), dtype=torch.int64, device=x.device)
        scratch, parts = _scratch(x, shape, grid[0], 4)
        size, fast = (x.shape[0], call.eps), {"FAST": chips.fast_tanh(x.device, x.dtype)}
        wanted = tuple(each if each.numel() else None for each in sums)
        state = (x, grad_y, mask, given, saved.mean, saved.var)
        with on_device_of(x):
            taken = (*state, ticket, wanted, through, scratch, parts, *size)
            launch(sums_kernel, grid, taken, {**fast, **shape.constants}, shape.options)
            shape, grid = _launch(x, "backward", mask)
            launch(backward_kernel, grid, (*state, through, grad_x, *size), {**fast, **shape.constants}, shape.options)
    return DiceGradients(grad_x, *sums)
