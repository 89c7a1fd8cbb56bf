"""The registered ops `local_activation` and `local_activation_backward`: fakes and autograd formula."""

from __future__ import annotations

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
from din_kernels.ops.registration import keep, kept, register, register_backward
from din_kernels.ops.schemas import library


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


def _setup_context(ctx, inputs, output):
    call, ctx.backend = LocalActivationCall(*inputs[:-1]), inputs[-1]
    # A table that the candidates share with the history takes one sparse gradient: torch cannot add two in bf16.
    ctx.shared = [
        next((at for at, other in enumerate(call.history_tables) if call.history_ids and other is table), None)
        if call.query_ids
        else None
        for table in call.query_tables
    ]
    result = LocalActivationResult(*output)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(result.logsumexp, result.statistics)
    keep(ctx, call, result)


def _autograd(ctx, grad_pooled, _logsumexp, grad_pair_weights, _statistics):
    call, saved = kept(ctx)
    needed = LocalActivationCall(*ctx.needs_input_grad[:-1])
    if grad_pooled is None:
        grad_pooled = torch.zeros_like(saved.pooled)
    towards = LocalActivationGrads(grad_pooled, grad_pair_weights, any(needed.query_tables), any(needed.history_tables))
    grads = LocalActivationGradients(
        *torch.ops.din_kernels.local_activation_backward(*towards, *call, *saved, ctx.backend)
    )
    query = _of_tables(call.query_tables, call.query_ids, grads.query, needed.query_tables, call.sparse_grad)
    history = _of_tables(call.history_tables, call.history_ids, grads.history, needed.history_tables, call.sparse_grad)
    _join_shared(ctx.shared, query, history)
    none = LocalActivationCall(*[None] * len(call))
    return *none._replace(
        query_tables=query,
        query_ids=[None] * len(call.query_ids),
        history_tables=history,
        history_ids=[None] * len(call.history_ids),
        weights=grads.weights,
        biases=grads.biases,
        params=grads.params,
        eps=None if call.eps else [],  # an empty list passes for a list of tensors
    ), None


def _of_tables(tables, ids, grads, needed, sparse):
    """Gradients of tables from those of their rows: as they are, or one entry per id."""

    def of_table(at):
        if not needed[at]:
            return None
        if not ids:
            return grads[at]
        if sparse:
            return _sparse(ids[at].to(torch.int64).unsqueeze(0), grads[at], tables[at].shape)
        return torch.ops.aten.embedding_dense_backward(grads[at], ids[at], tables[at].shape[0], -1, False)

    return [of_table(at) for at in range(len(tables))]


def _sparse(indices, values, shape):
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)


def _join_shared(shared, query, history):
    """Moves sparse gradients of tables that the candidates share with the history into one per table."""
    for at, of_history in enumerate(shared):
        if of_history is None or query[at] is None or history[of_history] is None or not query[at].is_sparse:
            continue
        both = (history[of_history], query[at])
        indices = torch.cat([grad._indices() for grad in both], 1)
        values = torch.cat([grad._values() for grad in both])
        history[of_history] = _sparse(indices, values, both[0].shape)
        query[at] = None


def _no_vmap(info, in_dims, *args):
    raise NotImplementedError(
        "local_activation does not support torch.func.vmap: pass all candidates in one call (query_to_user)"
    )


register("local_activation", LocalActivationCall, check_values, _fake)
register_backward(
    "local_activation",
    LocalActivationCall,
    LocalActivationSaved,
    LocalActivationGrads,
    _backward_fake,
    _setup_context,
    _autograd,
)
torch.library.register_vmap("din_kernels::local_activation", _no_vmap, lib=library)
torch.library.register_vmap("din_kernels::local_activation_backward", _no_vmap, lib=library)
