"""From the op's call to what every kernel of the unit takes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from din_kernels.backends.calls import LocalActivationCall
from din_kernels.backends.triton import chips
from din_kernels.backends.triton.blocks import Spans, spans
from din_kernels.backends.triton.local_activation.arguments import Inputs, Layers, Places, Source, Unit, Where


class Prepared(NamedTuple):
    """A call with its inputs contiguous and by name."""

    given: LocalActivationCall
    inputs: Inputs
    unit: Unit
    weight_q: torch.Tensor  # [H1, D]: Wq, for concat Wq + Wd
    queries: int  # Q
    rows: int  # M
    users: int  # U
    device: torch.device
    dtype: torch.dtype  # of the rows, and of the products
    features: str

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
    strides: tuple[int, int],
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
        stride_k=strides[0],
        stride_qk=strides[1],
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


def _first_weight(weight: torch.Tensor, dim: int, features: str):
    """Wq (for concat Wq + Wd), Wk (for concat Wk - Wd) and Wp [H1, D] each; the last two None for outer."""
    weight_q, *others = weight[:, : dim * (weight.shape[1] // dim)].split(dim, 1)
    if features == "concat":
        weight_k, weight_d, weight_qk = others
        return weight_q + weight_d, weight_k - weight_d, weight_qk
    if features == "product":
        return weight_q, *others
    return weight_q, None, None


def prepare(call: LocalActivationCall) -> Prepared:
    """Gathers and describes the inputs; c is yet to be made."""
    query = Source(_contiguous(call.query_tables), _contiguous(call.query_ids))
    history = Source(_contiguous(call.history_tables), _contiguous(call.history_ids))
    weights, params = _contiguous(call.weights), _params(call)
    queries, rows = (query.ids or query.tables)[0].shape[0], (history.ids or history.tables)[0].shape[0]
    query_widths = tuple([table.shape[1] for table in query.tables])
    history_widths = tuple([table.shape[1] for table in history.tables])
    weight_q, weight_k, weight_qk = _first_weight(weights[0], sum(history_widths), call.features)
    device, dtype = history.tables[0].device, history.tables[0].dtype
    unit = unit_of(
        query_widths,
        history_widths,
        tuple([weight.shape[0] for weight in weights[: max(len(params), 1)]]),
        _steps(params),
        (0, 0) if weight_k is None else (weight_k.stride(0), weight_qk.stride(0)),
        call.activation,
        chips.fast_tanh(device, dtype),
    )
    row_mask = None if call.row_mask is None else call.row_mask.view(torch.uint8)
    where = Where(call.begin, call.length, call.row_index, row_mask, call.query_to_user)
    mlp = Layers(weights, _contiguous(call.biases), params, weight_k, weight_qk)
    term = torch.empty(queries, unit.widths[0], dtype=torch.float32, device=device)
    return Prepared(
        given=call,
        inputs=Inputs(query, history, where, mlp, term, folded=None),
        unit=unit,
        weight_q=weight_q,
        queries=queries,
        rows=rows,
        users=call.begin.shape[0],
        device=device,
        dtype=dtype,
        features=call.features,
    )


def query_rows(call: Prepared, first: int, last: int) -> torch.Tensor:
    """Rows [last - first, D] of the query."""
    tables, ids = call.inputs.query
    if not ids:
        return tables[0][first:last]
    return torch.cat([table[each[first:last]] for table, each in zip(tables, ids, strict=True)], 1)
