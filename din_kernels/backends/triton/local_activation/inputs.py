"""From the op's call to what every kernel of the unit takes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from din_kernels.backends.calls import LocalActivationCall
from din_kernels.backends.triton import cdiv, chips, next_power_of_2
from din_kernels.backends.triton.blocks import Spans, spans
from din_kernels.backends.triton.launch import launch
from din_kernels.backends.triton.local_activation.arguments import Inputs, Layers, Places, Source, Unit, Where
from din_kernels.backends.triton.local_activation.forward import term_kernel
from din_kernels.backends.triton.local_activation.memory import TERM_ROWS
from din_kernels.backends.triton.local_activation.weights import Form, form_of, prepare_kernel, weight_places


class Prepared(NamedTuple):
    """A call with its inputs contiguous and by name."""

    given: LocalActivationCall
    inputs: Inputs
    unit: Unit
    form: Form
    queries: int  # Q
    rows: int  # M
    users: int  # U
    device: torch.device
    dtype: torch.dtype  # of the rows, and of the products
    features: str

    def with_places(self, place: torch.Tensor) -> Prepared:
        """The same with Where.place."""
        return self._replace(inputs=self.inputs._replace(where=self.inputs.where._replace(place=place)))

    def with_params(self, layer: int, *more: torch.Tensor) -> Prepared:
        """The same with more parameters of a hidden layer's activation, [H] each."""
        mlp, unit = self.inputs.mlp, self.unit
        params = tuple((*own, *more) if at == layer else own for at, own in enumerate(mlp.params))
        inputs = self.inputs._replace(mlp=mlp._replace(params=params))
        return self._replace(inputs=inputs, unit=unit._replace(steps=_steps(params)))


def inverse_deviation(var: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(var + eps) in fp32: once a call, where kernels would repeat it for every tile and round thrice."""
    return (var.double() + eps).rsqrt().float()


def places(query_widths: Sequence[int], history_widths: Sequence[int]) -> tuple[Spans, Places, Places]:
    """Spans of D that cross no border of a table, and where query and history have them."""

    def places_in(widths: Sequence[int], columns: Sequence[int]) -> Places:
        ends = list(accumulate(widths))
        tables = [next(k for k, end in enumerate(ends) if column < end) for column in columns]
        first = [column - (ends[k] - widths[k]) for k, column in zip(tables, columns, strict=True)]
        return Places(tuple(tables), tuple(first), tuple(widths[k] for k in tables))

    cuts = sorted({0, *accumulate(query_widths), *accumulate(history_widths)})
    each = [spans(end - start, start) for start, end in zip(cuts[:-1], cuts[1:], strict=True)]
    d_spans = Spans(*(sum(field, ()) for field in zip(*each, strict=True)))
    return d_spans, places_in(query_widths, d_spans.start), places_in(history_widths, d_spans.start)


@functools.lru_cache(maxsize=256)
def unit_of(
    query_widths: tuple[int, ...],
    history_widths: tuple[int, ...],
    widths: tuple[int, ...],
    steps: tuple[tuple[int, ...], ...],
    outer: bool,
    activation: str,
    fast: bool,
) -> Unit:
    """The constants of a unit; made once, since a launch of 10 us leaves no time for them."""
    d_spans, query, history = places(query_widths, history_widths)
    return Unit(
        dim=sum(history_widths),
        d_spans=d_spans,
        query_places=query,
        history_places=history,
        widths=widths,
        layers=tuple(spans(width) for width in widths),
        hidden=len(steps),
        steps=steps,
        places=weight_places(sum(history_widths), widths, len(steps), outer),
        activation=activation,
        fast=fast,
    )


def _steps(params: tuple[tuple[torch.Tensor, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Per layer and parameter 1, or 0 where one number stands for all channels."""
    return tuple([tuple([int(p.numel() > 1) for p in layer]) for layer in params])


def _contiguous(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple([tensor.contiguous() for tensor in tensors])


def _params(call: LocalActivationCall) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Per hidden layer the activation's parameters, with 1 / sqrt(var + eps) in place of a given variance."""
    names, hidden = call.param_names, len(call.weights) - 1
    if not names:
        return ((),) * hidden
    params = tuple([_contiguous(call.params_of(layer)) for layer in range(hidden)])
    if "var" in names:
        at = names.index("var")
        params = tuple(
            (*own[:at], inverse_deviation(own[at], eps), *own[at + 1 :])
            for own, eps in zip(params, call.eps, strict=True)
        )
    return params


def prepare(call: LocalActivationCall) -> Prepared:
    """Gathers and describes the inputs; the weights and c are yet to be made."""
    query = Source(_contiguous(call.query_tables), _contiguous(call.query_ids))
    history = Source(_contiguous(call.history_tables), _contiguous(call.history_ids))
    params = _params(call)
    queries, rows = (query.ids or query.tables)[0].shape[0], (history.ids or history.tables)[0].shape[0]
    device, dtype = history.tables[0].device, history.tables[0].dtype
    form = form_of(call.activation, dtype, len(params))
    unit = unit_of(
        tuple([table.shape[1] for table in query.tables]),
        tuple([table.shape[1] for table in history.tables]),
        tuple([weight.shape[0] for weight in call.weights[: max(len(params), 1)]]),
        _steps(params),
        call.features == "outer",
        form.activation,
        chips.fast_tanh(device, dtype),
    )
    row_mask = None if call.row_mask is None else call.row_mask.view(torch.uint8)
    where = Where(call.begin, call.length, call.row_index, row_mask, call.query_to_user, place=None)
    places = unit.places
    matrices = torch.empty(places.matrix_size, dtype=dtype, device=device)
    vectors = torch.empty(places.vector_size, dtype=torch.float32, device=device)
    term = torch.empty(queries, unit.widths[0], dtype=torch.float32, device=device)
    return Prepared(
        given=call,
        inputs=Inputs(query, history, where, Layers(matrices, vectors, params), term, folded=None),
        unit=unit,
        form=form,
        queries=queries,
        rows=rows,
        users=call.begin.shape[0],
        device=device,
        dtype=dtype,
        features=call.features,
    )


def make_weights(call: Prepared) -> None:
    """Makes the weights that the kernels take, and c."""
    unit, form, mlp = call.unit, call.form, call.inputs.mlp
    rows = sum(unit.widths) + 1 if unit.hidden else unit.widths[0]
    launch(
        prepare_kernel,
        (rows,),
        (
            _contiguous(call.given.weights),
            _contiguous(call.given.biases),
            mlp.matrices,
            mlp.vectors,
        ),
        {
            "UNIT": unit,
            "FEATURES": call.features,
            "INTO": form.into,
            "GAIN": form.gain,
            "SHIFT": form.shift,
            "COLUMNS": next_power_of_2(max(unit.dim, *unit.widths)),
        },
        {"num_warps": 1},
    )
    if call.queries:
        launch(
            term_kernel,
            (cdiv(call.queries, TERM_ROWS),),
            (
                call.inputs.query,
                mlp.matrices,
                mlp.vectors,
                call.inputs.term,
                call.queries,
            ),
            {
                "UNIT": unit,
                "BLOCK": TERM_ROWS,
                "PRECISION": "tf32" if chips.dot_precision(call.dtype) == "tf32" else "ieee",
            },
            {"num_warps": 4},
        )


def query_rows(call: Prepared, first: int, last: int) -> torch.Tensor:
    """Rows [last - first, D] of the query."""
    tables, ids = call.inputs.query
    if not ids:
        return tables[0][first:last]
    return torch.cat([table[each[first:last]] for table, each in zip(tables, ids, strict=True)], 1)
