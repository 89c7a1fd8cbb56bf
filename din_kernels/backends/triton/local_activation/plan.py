"""From the op's arguments to a launch: spans, tile shape, number of programs, and how the first layer is made."""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton

from din_kernels.backends.triton import chips
from din_kernels.backends.triton.blocks import LEAST, flat, spans
from din_kernels.backends.triton.local_activation.memory import Shape, fitting, refuses

CHUNK_BYTES = 64 * 2**20  # of outer's A [chunk, H1, D]
STEPS_PER_PART = 4  # a history is split among programs into parts of at least so many tiles


class Call(NamedTuple):
    """The op's inputs, contiguous, as every kernel of the unit takes them."""

    source: tuple  # (query_tables, query_ids, row_tables, row_ids)
    where: tuple  # (begin, length, row_index, row_mask, query_to_user)
    weights: list[torch.Tensor]
    biases: list[torch.Tensor]
    params: list[list[torch.Tensor]]  # per hidden layer; Dice: alpha, mean, 1 / sqrt(var + eps)
    eps: list[float]
    first: tuple[torch.Tensor, ...]  # (Wk' = Wk - Wd, Wp) of concat and product [H1, D]; none for outer
    through_query: torch.Tensor  # Wq, for concat Wq + Wd [H1, D]
    constants: dict[str, Any]  # what every kernel takes as constexpr
    queries: int  # Q
    rows: int  # M
    users: int  # U
    device: torch.device
    dtype: torch.dtype  # of the rows, and of the products
    features: str


def inverse_deviation(var: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(var + eps) in fp32: once a call, where kernels would repeat it for every tile and round thrice."""
    return (var.double() + eps).rsqrt().float()


def _sources(query_widths, row_widths):
    """Spans of D that cross no border of a table, and for each where query and rows have it."""

    def place(widths, column):
        ends = list(accumulate(widths))
        table = next(k for k, end in enumerate(ends) if column < end)
        return table, column - (ends[table] - widths[table]), widths[table]

    cuts = sorted({0, *accumulate(query_widths), *accumulate(row_widths)})
    d_spans = tuple(span for a, b in zip(cuts[:-1], cuts[1:], strict=True) for span in spans(b - a, a))
    return d_spans, *(tuple(place(widths, span[0]) for span in d_spans) for widths in (query_widths, row_widths))


@functools.lru_cache(maxsize=256)
def _static(query_widths: tuple[int, ...], row_widths: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, Any]:
    """Constants that follow from sizes alone; made once, since a launch of 10 us leaves no time for them."""
    d_spans, q_sources, k_sources = _sources(query_widths, row_widths)
    return {
        "D_SPANS": flat(d_spans), "Q_SOURCES": q_sources, "K_SOURCES": k_sources, "DIM": sum(row_widths),
        "LAYERS": tuple(flat(spans(width)) for width in widths), "WIDTHS": widths,
    }  # fmt: skip


def steps(params: list[list[torch.Tensor]]) -> tuple[tuple[int, ...], ...]:
    """Per layer and parameter 1, or 0 where one number stands for all channels."""
    return tuple(tuple(int(p.numel() > 1) for p in layer) for layer in params)


def make_call(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user, weights,
              biases, params, eps, features, activation) -> Call:  # fmt: skip
    """Gathers and describes the inputs."""
    hidden = len(weights) - 1
    per_layer = len(params) // hidden if hidden else 0
    groups = tuple(tuple(tensor.contiguous() for tensor in group)
                   for group in (query_tables, query_ids, row_tables, row_ids))  # fmt: skip
    by_layer = [[p.contiguous() for p in params[per_layer * at : per_layer * (at + 1)]] for at in range(hidden)]
    if per_layer == 3:
        by_layer = [[a, mean, inverse_deviation(var, e)] for (a, mean, var), e in zip(by_layer, eps, strict=True)]
    widths = tuple(weight.shape[0] for weight in weights[: max(hidden, 1)])
    static = _static(*(tuple(t.shape[1] for t in tables) for tables in (groups[0], groups[2])), widths)
    device, dtype, dim = row_tables[0].device, row_tables[0].dtype, static["DIM"]
    weights = [weight.contiguous() for weight in weights]
    through_query, *others = weights[0][:, : dim * (weights[0].shape[1] // dim)].split(dim, 1)
    first = ()
    if features == "concat":
        through_query, first = through_query + others[1], (others[0] - others[1], others[2])
    elif features == "product":
        first = tuple(others)
    constants = static | {
        "STEPS": steps(by_layer), "STRIDES": tuple(weight.stride(0) for weight in first), "ACTIVATION": activation,
        "FAST": chips.fast_tanh(device, dtype),
    }  # fmt: skip
    return Call(
        groups, (begin, length, row_index, None if row_mask is None else row_mask.view(torch.uint8), query_to_user),
        weights, [bias.contiguous() for bias in biases], by_layer,
        list(eps) or [0.0] * hidden, first, through_query, constants,
        (query_ids or query_tables)[0].shape[0], (row_ids or row_tables)[0].shape[0], begin.shape[0], device, dtype,
        features,
    )  # fmt: skip


class Tiles(NamedTuple):
    """Shape of a launch."""

    constants: dict[str, Any]  # GROUP, LENGTH, FOLD, PRECISION and the compiler's options
    programs: int
    splits: int  # programs that share one history


def tiles(call: Call, direction: str, splits: bool, single: bool = False) -> Tiles:
    """Folded from an average history of `fold_from` behaviours on (M / U, which no wait for the GPU reads), for
    outer, which has no other form, and where tiles must hold a single candidate; grouped below. In fp32 always folded:
    Wk' and Wp as they are take 130 KB of shared memory and more registers than there are, A_i half of it. Histories are
    split where the candidates alone leave programs idle.
    """
    chip, size = chips.chip(call.device), "16 bit" if call.dtype.itemsize == 2 else "32 bit"
    config, backward = chips.configuration("local_activation", chip), direction == "_backward"
    average = call.rows // max(call.users, 1)
    folded = single or call.features == "outer" or average >= config[size]["fold_from"]
    dim, columns, widths, activation = (call.constants[name] for name in ("DIM", "D_SPANS", "WIDTHS", "ACTIVATION"))
    shape = tile_shape(chip, size, folded, backward, activation, dim, sum(columns[1::3]), widths,
                       chips.dot_precision(call.dtype), chips.shared_memory(call.device))  # fmt: skip
    work = triton.cdiv(max(call.queries, 1), shape.group)
    # 8 warps with 255 registers each fill a multiprocessor; a program more would be a part more to add up.
    per = config["backward_programs_per_multiprocessor" if backward else "programs_per_multiprocessor"]
    most = chips.multiprocessors(call.device) * per
    parts = 1
    if splits and work < most:
        parts = max(1, min(most // work, average // (STEPS_PER_PART * shape.length)))
    constants = {
        "GROUP": shape.group, "LENGTH": shape.length, "FOLD": shape.folded, "PRECISION": shape.precision,
        "num_stages": shape.num_stages, "num_warps": shape.num_warps, **chips.compiler_options(),
    }  # fmt: skip
    return Tiles(constants, min(work * parts, most), parts)


@functools.lru_cache(maxsize=1024)
def tile_shape(
    chip: str, size: str, folded: bool, backward: bool, activation: str, dim: int, columns: int,
    widths: tuple[int, ...], precision: str, limit: int,
) -> Shape:  # fmt: skip
    """The configured shape of a path, for an activation that has one its own; smaller where the chip's shared memory
    does not hold it, see local_activation/memory.py."""
    shapes, direction = chips.configuration("local_activation", chip)[size], "_backward" if backward else ""

    def configured(path: str) -> Shape:
        own = shapes.get(f"{path}{direction}, {activation}", shapes[path + direction])
        length = own["length"]
        # Wide rows: as many elements in a tile as at D = 128.
        while dim * length > 128 * shapes["folded"]["length"] and length * own["group"] > LEAST:
            length //= 2
        return Shape(path == "folded", own["group"], length, own["num_stages"], own["num_warps"], precision)

    wanted = configured("folded" if folded else "grouped")
    return fitting(columns, widths, 2 if size == "16 bit" else 4, backward, wanted, configured("folded"), limit)


def refuses_sizes(query_widths, row_widths, hidden, dtype: torch.dtype, device: str, backward: bool) -> str | None:
    """Why no kernel takes rows of tables of these widths and hidden layers of `hidden`, or None."""
    d_spans, _, _ = _sources(query_widths, row_widths)
    limit = chips.shared_memory(torch.device(device))
    return refuses(sum(row_widths), sum(width for _, width, _ in d_spans), hidden or (1,), dtype.itemsize, backward,
                   limit)  # fmt: skip
