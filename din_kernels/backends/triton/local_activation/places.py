"""Where the backward's kernels leave what, and the activation's gradients made of their sums."""

from __future__ import annotations

import functools

import torch

from din_kernels.backends.triton import cdiv
from din_kernels.backends.triton.blocks import MOST, Spans, spans
from din_kernels.backends.triton.local_activation.arguments import Places, RoomPlaces, Unit, UpperPlaces
from din_kernels.backends.triton.local_activation.inputs import Prepared


class _Line:
    """Takes places one behind the other, each at a multiple of `step`."""

    def __init__(self, step: int):
        self.step, self.size = step, 0

    def take(self, count: int) -> int:
        start = self.size
        self.size += cdiv(count, self.step) * self.step
        return start


@functools.lru_cache(maxsize=256)
def room_places(widths: tuple[int, ...], hidden: int) -> RoomPlaces:
    """A line of Room.layers; every vector begins at a multiple of 16 bytes."""
    line = _Line(8)
    dz, h = [], []
    for width in widths:
        dz.append(line.take(width))
        h.append(line.take(width if hidden else 0))
    return RoomPlaces(tuple(dz), tuple(h), line.size)


@functools.lru_cache(maxsize=256)
def upper_places(widths: tuple[int, ...], hidden: int) -> UpperPlaces:
    """A part of upper_layers_kernel; every field begins at a multiple of 16 bytes."""
    line = _Line(4)
    weights, biases = [], []
    for layer in range(1, hidden):
        weights.append(line.take(widths[layer] * widths[layer - 1]))
        biases.append(line.take(widths[layer]))
    last = line.take(widths[-1]), line.take(1)
    return UpperPlaces(tuple(weights), tuple(biases), *last, line.size)


@functools.lru_cache(maxsize=256)
def sums_places(widths: tuple[int, ...], hidden: int, sums: int) -> tuple[tuple[int, ...], int]:
    """Where a part of row_gradients_kernel holds the activation's sums [SUMS, H] of each hidden layer, and its size."""
    line = _Line(4)
    return tuple(line.take(sums * widths[layer]) for layer in range(hidden)), line.size


def _finer(field: Spans, most: int) -> Spans:
    """The same columns in blocks of at most `most`."""
    each = [spans(valid, start, most) for start, valid in zip(field.start, field.valid, strict=True)]
    return Spans(*(sum(parts, ()) for parts in zip(*each, strict=True)))


@functools.lru_cache(maxsize=256)
def in_blocks(unit: Unit, most: int) -> Unit:
    """The unit with D and its layers in blocks of at most `most` columns."""
    d_spans = _finer(unit.d_spans, most)
    within = [max(at for at, start in enumerate(unit.d_spans.start) if start <= each) for each in d_spans.start]

    def same(places: Places) -> Places:
        shift = [each - unit.d_spans.start[at] for at, each in zip(within, d_spans.start, strict=True)]
        return Places(
            tuple(places.table[at] for at in within),
            tuple(places.column[at] + more for at, more in zip(within, shift, strict=True)),
            tuple(places.width[at] for at in within),
        )

    return unit._replace(
        d_spans=d_spans,
        query_places=same(unit.query_places),
        history_places=same(unit.history_places),
        layers=tuple(_finer(layer, most) for layer in unit.layers),
    )


@functools.lru_cache(maxsize=256)
def columns_apart(unit: Unit) -> tuple[Unit, ...]:
    """The unit 64 columns of D after 64, for first_layer_kernel: sums of a whole dA, dWk' and dWp' are more than 4
    warps have registers."""
    groups: list[list[int]] = []
    for at, width in enumerate(unit.d_spans.width):
        if not groups or sum(unit.d_spans.width[own] for own in groups[-1]) + width > MOST:
            groups.append([])
        groups[-1].append(at)

    def only(fields, group):
        return type(fields)(*(tuple(field[at] for at in group) for field in fields))

    return tuple(
        unit._replace(
            d_spans=only(unit.d_spans, group),
            query_places=only(unit.query_places, group),
            history_places=only(unit.history_places, group),
        )
        for group in groups
    )


class Sums:
    """The activation's sums over all pairs, layer by layer."""

    def __init__(self, call: Prepared, sums: int, total: torch.Tensor):
        self.call, self.sums = call, sums
        self.total = total  # [size], added up over programs
        self.at, _ = sums_places(call.unit.widths, call.unit.hidden, sums)

    def of(self, layer: int) -> torch.Tensor:
        """[SUMS, H] of a hidden layer."""
        width = self.call.unit.widths[layer]
        return self.total[self.at[layer] : self.at[layer] + self.sums * width].view(self.sums, width)

    def params(self) -> list[torch.Tensor]:
        """Gradients of the parameters, layer by layer: dslope; or dalpha and, of given statistics, dmean and dvar."""
        given = self.call.given
        return [
            grad.to(param.dtype, copy=True)
            for layer in range(self.call.unit.hidden)
            for grad, param in zip(self._of_layer(layer), given.params_of(layer), strict=True)
        ]

    def _of_layer(self, layer: int) -> list[torch.Tensor]:
        names, params = self.call.given.param_names, self.call.given.params_of(layer)
        if not names:
            return []
        sums = self.of(layer)
        found = list(sums[: len(params)])
        if "var" in names:
            # Both statistics flow through zhat = (z - mean) / sqrt(var + eps): sums of g, and of g zhat.
            inverse = self.call.inputs.mlp.params[layer][names.index("var")]
            found[names.index("mean")] = -sums[1] * inverse
            found[names.index("var")] = -0.5 * sums[2] * inverse.square()
        return [g if p.numel() > 1 else g.sum(0, keepdim=True) for g, p in zip(found, params, strict=True)]
