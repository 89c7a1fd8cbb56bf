"""The registered ops `local_activation` and `local_activation_backward`: implementation, fake and autograd formula."""

from __future__ import annotations

import functools

import torch

from din_kernels import backends, checks
from din_kernels.ops.local_activation.histories import without_autocast
from din_kernels.ops.schemas import library


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which kernels compute on rows of `dtype`: fp32 for bf16 and fp16."""
    return torch.promote_types(dtype, torch.float32)


# The CPU keeps it in double: scores of 10,000 and more leave fp32 no digit behind the point.
LOGSUMEXP = {"cpu": torch.float64, "cuda": torch.float64}


def rows_in(tables, ids) -> int:
    """n of the rows [n, D] that tables and ids stand for."""
    return ids[0].shape[0] if ids else tables[0].shape[0]


def width_of(tables) -> int:
    """D of the rows [n, D]."""
    return sum(table.shape[1] for table in tables)


def _check_values(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, query_to_user, pair_begin,
                  total_pairs):  # fmt: skip
    """Everything that the kernels would follow out of bounds, checked where the values are at hand: a trace, which has
    none, ends here too."""
    if not checks.at_hand(begin):
        return
    rows = rows_in(row_tables, row_ids)
    capacity, end = rows if row_index is None else row_index.shape[0], begin + length
    if begin.numel() and (int(length.min()) < 0 or int(begin.min()) < 0 or int(end.max()) > capacity):
        raise ValueError(f"lengths must stay within the {capacity} history rows, got rows up to "
                         f"{int(end.max())} and lengths from {int(length.min())}")  # fmt: skip
    if bool((end[:-1] > begin[1:]).any()):
        at = int((end[:-1] > begin[1:]).nonzero()[0])
        raise ValueError(f"lengths must keep every history within its own rows, got {int(length[at])} for history "
                         f"{at}, which reaches into the next")  # fmt: skip
    within = functools.partial(checks.ids_within, readable=checks.at_hand)
    if row_index is not None:
        within("row_index", row_index, rows, "history rows")
    if query_to_user is not None:
        within("query_to_user", query_to_user, begin.shape[0], f"{begin.shape[0]} histories")
    for name, tables, ids in (("query_ids", query_tables, query_ids), ("row_ids", row_tables, row_ids)):
        for k, each in enumerate(ids):
            within(f"{name}[{k}]", each, tables[k].shape[0])
    if pair_begin is not None and pair_begin.numel():
        last = int((pair_begin + (length if query_to_user is None else length[query_to_user])).max())
        if int(pair_begin.min()) < 0 or last > total_pairs:
            raise ValueError(f"pair_begin must keep all weights within total_pairs ({total_pairs}), got up to {last}")


def _forward(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user,
             pair_begin, total_pairs, *options):  # fmt: skip
    _check_values(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, query_to_user, pair_begin,
                  total_pairs)  # fmt: skip
    *options, backend = options
    with without_autocast(begin):
        return backends.module(backend, "local_activation").forward(
            query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user, pair_begin,
            total_pairs, *options,
        )  # fmt: skip


def _backward(grad_pooled, *arguments):
    *arguments, backend = arguments
    with without_autocast(grad_pooled):
        return backends.module(backend, "local_activation").backward(grad_pooled, *arguments)


def _forward_fake(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user,
                  pair_begin, total_pairs, weights, biases, params, eps, dice_training, sparse_grad, features,
                  activation, normalize, scale, backend):  # fmt: skip
    queries, dtype = rows_in(query_tables, query_ids), arithmetic_dtype(query_tables[0].dtype)
    wide = query_tables[0].new_empty(0, dtype=dtype)
    return (
        query_tables[0].new_empty(queries, width_of(query_tables)),
        wide.new_empty(queries if normalize == "softmax" else 0, dtype=LOGSUMEXP.get(backend, dtype)),
        wide.new_empty(total_pairs),
        wide.new_empty(2, sum(bias.shape[0] for bias in biases[:-1]) if dice_training else 0),
    )


def _backward_fake(grad_pooled, grad_pair_weights, query_tables, query_ids, row_tables, row_ids, begin, length,
                   row_index, row_mask, query_to_user, pair_begin, total_pairs, weights, biases, params, eps,
                   dice_training, sparse_grad, features, activation, normalize, scale, pooled, logsumexp, pair_weights,
                   statistics, need_query, need_rows, backend):  # fmt: skip
    def grads(tables, ids, needed):
        rows = rows_in(tables, ids)
        return [table.new_empty((rows, table.shape[1]) if needed else 0) for table in tables]

    return (
        grads(query_tables, query_ids, need_query),
        grads(row_tables, row_ids, need_rows),
        *([t.new_empty(t.shape) for t in group] for group in (weights, biases, params)),
    )


def _setup_context(ctx, inputs, output):
    (query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user, pair_begin,
     ctx.total_pairs, weights, biases, params, *ctx.options) = inputs  # fmt: skip
    groups = [query_tables, query_ids, row_tables, row_ids, weights, biases, params, output]
    ctx.sizes = [len(group) for group in groups]
    # A table that the candidates share with the history takes one sparse gradient: torch cannot add two in bf16.
    ctx.shared = [
        next((j for j, other in enumerate(row_tables) if row_ids and other is table), None) if query_ids else None
        for table in query_tables
    ]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[3])
    ctx.save_for_backward(begin, length, row_index, row_mask, query_to_user, pair_begin,
                          *(tensor for group in groups for tensor in group))  # fmt: skip


def _table_grads(tables, ids, grads, needs, sparse):
    """Gradients of tables from those of their rows: as they are, or one entry per id."""
    if not ids:
        return [grad if need else None for grad, need in zip(grads, needs, strict=True)]
    return [
        None if not need
        else _sparse(each, grad, table) if sparse
        else torch.ops.aten.embedding_dense_backward(grad, each, table.shape[0], -1, False)
        for table, each, grad, need in zip(tables, ids, grads, needs, strict=True)
    ]  # fmt: skip


def _sparse(ids, grad, table):
    return torch.sparse_coo_tensor(ids.to(torch.int64).unsqueeze(0), grad, table.shape, check_invariants=False)


def _join_shared(shared, grad_query, grad_rows):
    """Moves sparse gradients of tables that the candidates share with the history into one per table."""
    for k, j in enumerate(shared):
        if j is None or grad_query[k] is None or grad_rows[j] is None or not grad_query[k].is_sparse:
            continue
        both = (grad_rows[j], grad_query[k])
        indices = torch.cat([grad._indices() for grad in both], 1)
        values = torch.cat([grad._values() for grad in both])
        grad_rows[j] = torch.sparse_coo_tensor(indices, values, both[0].shape, check_invariants=False)
        grad_query[k] = None


def _autograd(ctx, grad_pooled, _logsumexp, grad_pair_weights, _statistics):
    begin, length, row_index, row_mask, query_to_user, pair_begin, *rest = ctx.saved_tensors
    groups = []
    for size in ctx.sizes:
        groups.append(list(rest[:size]))
        rest = rest[size:]
    query_tables, query_ids, row_tables, row_ids, weights, biases, params, saved = groups
    if grad_pooled is None:
        grad_pooled = torch.zeros_like(saved[0])
    *options, backend = ctx.options
    needs_query, needs_rows = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    grad_query, grad_rows, *grads = torch.ops.din_kernels.local_activation_backward(
        grad_pooled, grad_pair_weights, query_tables, query_ids, row_tables, row_ids, begin, length, row_index,
        row_mask, query_to_user, pair_begin, ctx.total_pairs, weights, biases, params, *options, *saved,
        any(needs_query), any(needs_rows), backend,
    )  # fmt: skip
    sparse = options[2]
    grad_query = _table_grads(query_tables, query_ids, grad_query, needs_query, sparse)
    grad_rows = _table_grads(row_tables, row_ids, grad_rows, needs_rows, sparse)
    _join_shared(ctx.shared, grad_query, grad_rows)
    return (
        grad_query,
        [None] * len(query_ids),
        grad_rows,
        [None] * len(row_ids),
        *(None,) * 7,
        *grads,
        None if options[0] else [],  # eps: an empty list passes for a list of tensors
        *(None,) * len(options),
    )


def _no_double_backward(ctx, *grads):
    raise NotImplementedError(
        "local_activation has no double backward: its gradients cannot be differentiated again; "
        "use din_kernels.use_backend('reference') for that"
    )


def _no_vmap(info, in_dims, *args):
    raise NotImplementedError(
        "local_activation does not support torch.func.vmap: pass all candidates in one call (query_to_user)"
    )


library.impl("local_activation", _forward, "CompositeExplicitAutograd")
library.impl("local_activation_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("din_kernels::local_activation", _forward_fake, lib=library)
torch.library.register_fake("din_kernels::local_activation_backward", _backward_fake, lib=library)
torch.library.register_autograd("din_kernels::local_activation", _autograd, setup_context=_setup_context, lib=library)
torch.library.register_autograd("din_kernels::local_activation_backward", _no_double_backward, lib=library)
torch.library.register_vmap("din_kernels::local_activation", _no_vmap, lib=library)
torch.library.register_vmap("din_kernels::local_activation_backward", _no_vmap, lib=library)
