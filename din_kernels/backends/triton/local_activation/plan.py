"""From a call to a launch: the shape of a tile, the number of programs, and how many share a history."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton

from din_kernels.backends import Request
from din_kernels.backends.triton import chips, refuses_tensors
from din_kernels.backends.triton.blocks import LEAST
from din_kernels.backends.triton.local_activation import memory
from din_kernels.backends.triton.local_activation.inputs import Prepared, places
from din_kernels.backends.triton.local_activation.memory import Shape, fitting

STEPS_PER_PART = 4  # a history is split among programs into parts of at least so many tiles


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    options = request.options
    if options["dice_training"] == "some":
        return "either all or none of the Dice layers must take batch statistics, got some"
    sizes = (options[name] for name in ("query_widths", "history_widths", "hidden"))
    return refuses_tensors(request) or refuses_sizes(*sizes, request.dtype, request.device, options["backward"])


def refuses_sizes(query_widths, history_widths, hidden, dtype: torch.dtype, device: str, backward: bool) -> str | None:
    """Why no kernel takes rows of tables of these widths and hidden layers of `hidden`, or None."""
    d_spans, _, _ = places(query_widths, history_widths)
    columns = sum(d_spans.width)
    limit = chips.shared_memory(torch.device(device))
    return memory.refuses(sum(history_widths), columns, hidden or (1,), dtype.itemsize, backward, limit)


class Launch(NamedTuple):
    """How kernels that go over all pairs are launched."""

    tile: Shape
    options: dict[str, Any]  # the compiler's
    programs: int
    splits: int  # programs that share one history


def plan(call: Prepared, backward: bool, splits: bool, single: bool = False) -> Launch:
    """The launch of a call's forward or backward.

    Rows are folded from an average history of `fold_from` behaviours on (M / U, which no wait for the GPU reads), for
    outer, which has no other form, and where tiles must hold a `single` candidate; below they are grouped. In fp32 they
    are always folded: Wk' and Wp as they are take 130 KB of shared memory and more registers than there are, A_i half
    of it. Histories are split, where they may be, if the candidates alone leave programs idle.
    """
    chip, size = chips.chip(call.device), "16 bit" if call.dtype.itemsize == 2 else "32 bit"
    config, unit = chips.configuration("local_activation", chip), call.unit
    average = call.rows // max(call.users, 1)
    folded = single or call.features == "outer" or average >= config[size]["fold_from"]
    shape = tile_shape(
        Path(chip, size, folded, backward, unit.activation),
        unit.dim,
        sum(unit.d_spans.width),
        unit.widths,
        chips.dot_precision(call.dtype),
        chips.shared_memory(call.device),
    )
    work = triton.cdiv(max(call.queries, 1), shape.group)
    # 8 warps with 255 registers each fill a multiprocessor; a program more would be a part more to add up.
    per = config["backward_programs_per_multiprocessor" if backward else "programs_per_multiprocessor"]
    most = chips.multiprocessors(call.device) * per
    parts = 1
    if splits and work < most:
        parts = max(1, min(most // work, average // (STEPS_PER_PART * shape.length)))
    options = {"num_stages": shape.num_stages, "num_warps": shape.num_warps, **chips.compiler_options()}
    return Launch(shape, options, min(work * parts, most), parts)


class Path(NamedTuple):
    """What of a call chooses among the stored configurations."""

    chip: str
    size: str  # "16 bit" or "32 bit"
    folded: bool
    backward: bool
    activation: str


@functools.lru_cache(maxsize=1024)
def tile_shape(path: Path, dim: int, columns: int, widths: tuple[int, ...], precision: str, limit: int) -> Shape:
    """The configured shape of a path, for an activation that has one its own; smaller where the chip's shared memory
    does not hold it, see memory.py."""
    shapes = chips.configuration("local_activation", path.chip)[path.size]
    direction = "_backward" if path.backward else ""

    def configured(name: str) -> Shape:
        own = shapes.get(f"{name}{direction}, {path.activation}", shapes[name + direction])
        length = own["length"]
        # Wide rows: as many elements in a tile as at D = 128.
        while dim * length > 128 * shapes["folded"]["length"] and length * own["group"] > LEAST:
            length //= 2
        return Shape(name == "folded", own["group"], length, own["num_stages"], own["num_warps"], precision)

    wanted = configured("folded" if path.folded else "grouped")
    itemsize = 2 if path.size == "16 bit" else 4
    return fitting(columns, widths, itemsize, path.backward, wanted, configured("folded"), limit)
