"""From a call to a launch: the shape of a tile, the number of programs, and how many share a history."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from din_kernels.backends import Request
from din_kernels.backends.triton import cdiv, chips, refuses_tensors
from din_kernels.backends.triton.blocks import LEAST, MOST
from din_kernels.backends.triton.local_activation import memory
from din_kernels.backends.triton.local_activation.inputs import Prepared, places
from din_kernels.backends.triton.local_activation.memory import FORWARD, Shape, fitting

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
    columns = columns_of(tuple(query_widths), tuple(history_widths))
    limit = chips.shared_memory(torch.device(device))
    return memory.refuses(sum(history_widths), columns, tuple(hidden) or (1,), dtype.itemsize, backward, limit)


@functools.lru_cache(maxsize=256)
def columns_of(query_widths: tuple[int, ...], history_widths: tuple[int, ...]) -> int:
    """Columns in which rows of tables of these widths are held."""
    d_spans, _, _ = places(query_widths, history_widths)
    return sum(d_spans.width)


class Launch(NamedTuple):
    """How kernels that go over all pairs are launched."""

    tile: Shape
    options: dict[str, Any]  # the compiler's
    programs: int
    splits: int  # programs that share one history
    block: int  # columns that a block of D and of the layers has at most


def plan(call: Prepared, kind: str, splits: bool, single: bool = False) -> Launch:
    """The launch of one of memory.KINDS for a call.

    Rows are folded from an average history of `fold_from` behaviours on (M / U, which no wait for the GPU reads), for
    outer, which has no other form, and where tiles must hold a `single` candidate; below they are grouped. In fp32 they
    are always folded: Wk' and Wp' as they are take 130 KB of shared memory and more registers than there are, A_i half
    of it. Histories are split, where they may be, if the candidates alone leave programs idle.
    """
    chip, size = chips.chip(call.device), "16 bit" if call.dtype.itemsize == 2 else "32 bit"
    average = call.rows // max(call.users, 1)
    fold_from = chips.configuration("local_activation", chip)[size]["fold_from"]
    folded = single or call.features == "outer" or average >= fold_from
    tile = tile_of(
        Path(chip, size, folded, kind, call.unit.activation),
        call.unit.dim,
        sum(call.unit.d_spans.width),
        call.unit.widths,
        chips.dot_precision(call.dtype),
        chips.shared_memory(call.device),
    )
    work = cdiv(max(call.queries, 1), tile.shape.group)
    most = chips.multiprocessors(call.device) * tile.programs
    parts = 1
    if splits and work < most:
        parts = max(1, min(most // work, average // (STEPS_PER_PART * tile.shape.length)))
    return Launch(tile.shape, tile.options, min(work * parts, most), parts, tile.block)


class Path(NamedTuple):
    """What of a call chooses among the stored configurations."""

    chip: str
    size: str  # "16 bit" or "32 bit"
    folded: bool
    kind: str  # of memory.KINDS
    activation: str


class Tile(NamedTuple):
    """A shape with what the launch takes beside it."""

    shape: Shape
    options: dict[str, Any]  # the compiler's
    programs: int  # per multiprocessor
    block: int  # of Launch


@functools.lru_cache(maxsize=1024)
def tile_of(path: Path, dim: int, columns: int, widths: tuple[int, ...], precision: str, limit: int) -> Tile:
    """The configured tile of a path, for an activation that has one its own; smaller where the chip's shared memory
    does not hold it, see memory.py."""
    stored = chips.configuration("local_activation", path.chip)[path.size]
    per_kind = "" if path.kind == FORWARD else f", {path.kind}"

    def configured(name: str) -> tuple[Shape, dict[str, Any]]:
        own = stored.get(f"{name}{per_kind}, {path.activation}", stored[name + per_kind])
        length = own["length"]
        # Wide rows: as many elements in a tile as at D = 128.
        while dim * length > 128 * stored["folded"]["length"] and length * own["group"] > LEAST:
            length //= 2
        exact = own.get("exact", precision) if precision == chips.EXACT else precision
        return Shape(name == "folded", own["group"], length, own["num_stages"], own["num_warps"], exact), own

    itemsize = 2 if path.size == "16 bit" else 4
    wanted, folded = configured("folded" if path.folded else "grouped"), configured("folded")
    shape = fitting(columns, widths, itemsize, path.kind, wanted[0], folded[0], limit)
    own = wanted[1] if shape.folded == wanted[0].folded else folded[1]
    options = {"num_stages": shape.num_stages, "num_warps": shape.num_warps}
    return Tile(
        shape, options | chips.compiler_options(own.get("registers", 255)), own["programs"], own.get("block", MOST)
    )
