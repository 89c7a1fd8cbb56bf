"""Backward kernels of `dice`: sums over the rows, then dx.

With gate.py's names and v = dy x:

    du = v (1 - alpha) p (1 - p),  g = weight du,  dalpha = sum of v (1 - p)
    dx = dy (alpha + (1 - alpha) p) + inverse (g - avg g - zhat avg(g zhat))

The averages come through the batch statistics, as in batch norm; given statistics have none. As constants of a channel:

    dx = dy (offset + gain gate + slope x bend) + level + tilt centred
"""

from __future__ import annotations

import triton
import triton.language as tl

from din_kernels.backends.triton.blocks import narrow
from din_kernels.backends.triton.dice.gate import (
    bend,
    factors,
    gate,
    line,
    load_channels,
    load_inverse,
    load_weight,
)
from din_kernels.backends.triton.dice.parts import store_planes, summed, takes_last_ticket
from din_kernels.backends.triton.dice.tile import columns_of, lanes_of, load_tile, only_valid, tile_of


@triton.jit
def add_tile(total, x, grad_y, tile, own, FAST: tl.constexpr):
    """Sums of v (1 - p), v p (1 - p) and v p (1 - p) centred, to constant factors, and the number of rows where not all
    are valid."""
    value = load_tile(x, tile)
    centred, g = gate(value, own, FAST)
    v = load_tile(grad_y, tile) * value
    if FAST:
        rest = v * (1.0 - g)
        bent = rest + rest * g
    else:
        rest = v * (1.0 - g)
        bent = rest * g
    rest, bent = only_valid(rest, tile), only_valid(bent, tile)
    lifted = only_valid(bent * centred, tile)
    if len(tile.valid) > 0:
        here = tl.sum(tile.valid[0].to(tl.float32), 0)
    else:
        here = value.shape[0] * 1.0
    return total[0] + tl.sum(rest, 0), total[1] + tl.sum(bent, 0), total[2] + tl.sum(lifted, 0), total[3] + here


@triton.jit(do_not_specialize=["rows"])
def sums_kernel(
    x,  # [N, C]
    grad_y,  # [N, C]
    mask,  # [N] uint8, or None
    given,  # gate.Parameters
    mean,  # [C] fp32
    var,  # [C] fp32
    ticket,  # [] int64, 0
    sums,  # dalpha, dweight and dbias, [C] fp32 each, or None
    through,  # [2, C] fp32: level and tilt; None in evaluation
    scratch,  # [programs, 4, REPEAT C] fp32
    parts,  # [programs, 4, C] fp32
    rows,  # N
    eps,
    FAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    REPEAT: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Gradients of the parameters, and what the batch statistics give dx."""
    GROUP: tl.constexpr = REPEAT * CHANNELS
    lanes = lanes_of(CHANNELS, REPEAT, LANES)
    own = load_channels(given, mean, var, eps, lanes.column, lanes.used, FAST)
    program, programs = tl.program_id(0), tl.num_programs(0)
    tiles = rows // (REPEAT * ROWS)
    zero = tl.zeros([LANES], tl.float32)
    n = tl.zeros([], tl.float32) if mask is None else zero
    rest, bent, lifted = zero, zero, zero
    for at in range(program, tiles, programs):
        tile = tile_of(mask, at * ROWS, rows, lanes, True, CHANNELS, REPEAT, ROWS, VECTOR)
        rest, bent, lifted, n = add_tile((rest, bent, lifted, n), x, grad_y, tile, own, FAST)
    n += zero
    for at in range(tiles * ROWS + program, tl.cdiv(rows, REPEAT), programs):
        tile = tile_of(mask, at, rows, lanes, False, CHANNELS, REPEAT, 1, VECTOR)
        rest, bent, lifted, n = add_tile((rest, bent, lifted, n), x, grad_y, tile, own, FAST)

    own_scratch, part = scratch + program * (4 * GROUP), parts + program * (4 * CHANNELS)
    store_planes(own_scratch, (rest, bent, lifted, n), lanes.at, lanes.used, GROUP)
    tl.debug_barrier()
    column = columns_of(tl.program_id(1), COLUMNS)
    for plane in tl.static_range(4):
        total = summed(own_scratch + plane * GROUP, REPEAT, column, CHANNELS, CHANNELS, CHUNK)
        tl.store(part + plane * CHANNELS + column, total, mask=column < CHANNELS)
    if takes_last_ticket(ticket):
        for block in range(0, tl.num_programs(1)):
            finish(given, var, sums, through, parts, programs, eps, columns_of(block, COLUMNS), FAST, CHANNELS, CHUNK)


@triton.jit
def finish(
    given,
    var,
    sums,
    through,
    parts,
    programs,
    eps,
    column,
    FAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes the results of sums_kernel, from the parts of all programs."""
    inside = column < CHANNELS
    REST, BEND = factors(FAST)
    beta = 1.0 - tl.load(given.alpha + column, mask=inside, other=0.0)
    inverse, weight = load_inverse(var, eps, column, inside), load_weight(given, column, inside)
    STEP: tl.constexpr = 4 * CHANNELS
    d_alpha = REST * summed(parts, programs, column, STEP, CHANNELS, CHUNK)
    du = BEND * beta * summed(parts + CHANNELS, programs, column, STEP, CHANNELS, CHUNK)
    du_zhat = BEND * beta * inverse * summed(parts + 2 * CHANNELS, programs, column, STEP, CHANNELS, CHUNK)
    tl.store(sums[0] + column, d_alpha, mask=inside)
    if sums[1] is not None:
        tl.store(sums[1] + column, du_zhat, mask=inside)
    if sums[2] is not None:
        tl.store(sums[2] + column, du, mask=inside)
    if through is not None:
        valid = tl.maximum(summed(parts + 3 * CHANNELS, programs, column, STEP, CHANNELS, CHUNK), 1.0)
        tl.store(through + column, -inverse * weight * du / valid, mask=inside)
        tl.store(through + CHANNELS + column, -inverse * inverse * weight * du_zhat / valid, mask=inside)


@triton.jit
def gradient_tile(x, grad_y, grad_x, tile, own, offset, gain, slope, through, FAST: tl.constexpr):
    """dx, and 0 in the rows that are not valid."""
    value, dy = load_tile(x, tile), load_tile(grad_y, tile)
    centred, g = gate(value, own, FAST)
    dx = dy * (offset[None, :] + gain[None, :] * g + slope[None, :] * value * bend(g, FAST))
    if len(through) > 0:
        dx += through[0][None, :] + through[1][None, :] * centred
    dx = only_valid(dx, tile)
    tl.store(grad_x + tile.first + tile.at, narrow(dx, grad_x.dtype.element_ty), mask=tile.there)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    x,  # [N, C]
    grad_y,  # [N, C]
    mask,  # [N] uint8, or None
    given,  # gate.Parameters
    mean,  # [C] fp32
    var,  # [C] fp32
    through,  # [2, C] fp32, of sums_kernel; None in evaluation
    grad_x,  # [N, C]
    rows,  # N
    eps,
    FAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    REPEAT: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """dx, tile by tile."""
    lanes = lanes_of(CHANNELS, REPEAT, LANES)
    column, used = lanes.column, lanes.used
    own = load_channels(given, mean, var, eps, column, used, FAST)
    alpha = tl.load(given.alpha + column, mask=used, other=0.0)
    offset, gain = line(alpha, FAST)
    slope = factors(FAST)[1] * (1.0 - alpha) * load_weight(given, column, used) * load_inverse(var, eps, column, used)
    flow = ()
    if through is not None:
        flow = (
            tl.load(through + column, mask=used, other=0.0),
            tl.load(through + CHANNELS + column, mask=used, other=0.0),
        )
    program, programs = tl.program_id(0), tl.num_programs(0)
    tiles = rows // (REPEAT * ROWS)
    for at in range(program, tiles, programs):
        tile = tile_of(mask, at * ROWS, rows, lanes, True, CHANNELS, REPEAT, ROWS, VECTOR)
        gradient_tile(x, grad_y, grad_x, tile, own, offset, gain, slope, flow, FAST)
    for at in range(tiles * ROWS + program, tl.cdiv(rows, REPEAT), programs):
        tile = tile_of(mask, at, rows, lanes, False, CHANNELS, REPEAT, 1, VECTOR)
        gradient_tile(x, grad_y, grad_x, tile, own, offset, gain, slope, flow, FAST)
