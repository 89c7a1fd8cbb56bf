"""The registered ops `local_activation` and `local_activation_backward`: fakes and autograd formula."""

from __future__ import annotations

from typing import NamedTuple

import torch

from din_kernels.backends.calls import (
    LocalActivationCall,
    LocalActivationGradients,
    LocalActivationGrads,
    LocalActivationResult,
    LocalActivationSaved,
    arithmetic_dtype,
)
from din_kernels.ops.local_activation.checks import check_values
from din_kernels.ops.registration import Given, Gradient, Op, register
from din_kernels.ops.schemas import library
from din_kernels.ops.sparse_gradient import sparse_gradient


def _fake(call: LocalActivationCall) -> LocalActivationResult:
    like, wide = call.query_tables[0], arithmetic_dtype(call.dtype)
    return LocalActivationResult(
        pooled=like.new_empty(call.queries, call.dim),
        logsumexp=like.new_empty(call.queries if call.normalize == "softmax" else 0, dtype=torch.float64),
        pair_weights=like.new_empty(call.total_pairs, dtype=wide),
        statistics=like.new_empty(2, sum(call.hidden) if call.dice_training else 0, dtype=wide),
    )


def _backward_fake(
    call: LocalActivationCall, saved: LocalActivationSaved, grads: LocalActivationGrads
) -> LocalActivationGradients:
    def of_rows(tables, rows, needed):
        return [table.new_empty((rows, table.shape[1]) if needed else 0) for table in tables]

    def of_layers(tensors):
        return [tensor.new_empty(tensor.shape) for tensor in tensors]

    return LocalActivationGradients(
        query=of_rows(call.query_tables, call.queries, grads.need_query),
        history=of_rows(call.history_tables, call.rows, grads.need_history),
        weights=of_layers(call.weights),
        biases=of_layers(call.biases),
        params=of_layers(call.params),
    )


def _formula(given: Given, backward) -> dict:
    call, pooled = given.call, given.incoming.pooled
    needed = _Sides(given.needed["query_tables"], given.needed["history_tables"])
    towards = LocalActivationGrads(
        pooled=torch.zeros_like(given.saved.pooled) if pooled is None else pooled,
        pair_weights=given.incoming.pair_weights,
        need_query=any(needed.query),
        need_history=any(needed.history),
    )
    grads = LocalActivationGradients(*backward(towards))
    query, history = _of_tables(call, grads, needed, given.note)
    return {
        "query_tables": query,
        "history_tables": history,
        "weights": grads.weights,
        "biases": grads.biases,
        "params": grads.params,
    }


class _Sides(NamedTuple):
    """Per table of either side whether its gradient is asked for."""

    query: list[bool]
    history: list[bool]


def _shared(call: LocalActivationCall) -> list[int | None]:
    """For every table of the candidates, which table of the history it is, where both get one sparse gradient.

    torch cannot add two in bf16, nor trace their sum.
    """
    if not (call.sparse_grad and call.query_ids and call.history_ids):
        return [None] * len(call.query_tables)

    def same(at, other):
        padding = call.query_padding[at] == call.history_padding[other]
        return padding and call.history_tables[other] is call.query_tables[at]

    others = range(len(call.history_tables))
    return [next((each for each in others if same(at, each)), None) for at in range(len(call.query_tables))]


def _of_tables(call, grads, needed: _Sides, shared) -> tuple[list, list]:
    """Gradients of both sides' tables from those of their rows: as they are, or by id."""
    if not (call.query_ids or call.history_ids):
        return [grads.query[0] if needed.query[0] else None], [grads.history[0] if needed.history[0] else None]

    def uses(side):
        ids, tables = getattr(call, f"{side}_ids"), getattr(call, f"{side}_tables")
        rows, padding = getattr(grads, side), getattr(call, f"{side}_padding")
        return [(ids[at] if ids else None, rows[at], padding[at] if ids else -1) for at in range(len(tables))]

    query, history = uses("query"), uses("history")
    joined: dict[int, list] = {at: [use] for at, use in enumerate(history)}
    for at, other in enumerate(shared):
        if other is not None and needed.query[at]:
            joined[other].append(query[at])

    def gradient(of, table, wanted):
        return _of_table(of, table, call.sparse_grad) if wanted else None

    alone = [needs and other is None for needs, other in zip(needed.query, shared, strict=True)]
    return (
        [gradient([use], call.query_tables[at], alone[at]) for at, use in enumerate(query)],
        [gradient(joined[at], call.history_tables[at], needed.history[at]) for at in joined],
    )


def _of_table(uses, table, sparse):
    """The gradient of a table from (ids or None, gradients of its rows, padding) of each use."""
    ids, rows, padding = zip(*uses, strict=True)
    if ids[0] is None:
        return rows[0]
    if sparse:
        return sparse_gradient(ids, rows, table.shape[0], padding[0])
    return torch.ops.aten.embedding_dense_backward(rows[0], ids[0], table.shape[0], padding[0], False)


def _no_vmap(info, in_dims, *args):
    raise NotImplementedError(
        "local_activation does not support torch.func.vmap: pass all candidates in one call (query_to_user)"
    )


OP = register(
    Op(
        name="local_activation",
        call=LocalActivationCall,
        result=LocalActivationResult,
        check=check_values,
        fake=_fake,
        gradient=Gradient(
            saved=LocalActivationSaved,
            grads=LocalActivationGrads,
            learned=("query_tables", "history_tables", "weights", "biases", "params"),
            constant=("logsumexp", "statistics"),
            fake=_backward_fake,
            formula=_formula,
            note=_shared,
        ),
    )
)
torch.library.register_vmap("din_kernels::local_activation", _no_vmap, lib=library)
torch.library.register_vmap("din_kernels::local_activation_backward", _no_vmap, lib=library)
