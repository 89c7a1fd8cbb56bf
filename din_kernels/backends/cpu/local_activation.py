"""`local_activation` on the CPU: tensors to addresses for the compiled core."""

from __future__ import annotations

import torch

from din_kernels.backends import Request

DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    options = request.options
    if request.device != "cpu":
        return f"its tensors must be on the CPU, got {request.device}"
    if request.dtype not in DTYPES:
        return f"dtype must be one of {', '.join(DTYPES.values())}, got {request.dtype}"
    if options["dice_training"] == "some":
        return "Dice must be in training or in evaluation in all hidden layers, got a mixture"
    return None


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class _Call:
    """A call as the core takes it, and the contiguous tensors that its addresses point into."""

    def __init__(self, query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user,
                 pair_begin, weights, biases, params, eps, dice_training, features, activation, normalize,
                 scale):  # fmt: skip
        self._alive = []
        self.dtype = torch.promote_types(query_tables[0].dtype, torch.float32)  # of the arithmetic
        query, self.queries, self.dim = self._source(query_tables, query_ids)
        rows, self.rows, _ = self._source(row_tables, row_ids)
        self.widths = [weight.shape[0] for weight in weights[:-1]]
        self.content = {
            "dtype": DTYPES[query_tables[0].dtype], "queries": self.queries, "users": begin.shape[0],
            "rows_count": self.rows, "dim": self.dim, "query": query, "rows": rows,
            "begin": _address(begin), "length": _address(length), "row_index": _address(row_index),
            "row_mask": _address(row_mask), "query_to_user": _address(query_to_user),
            "pair_begin": _address(pair_begin),
            "widths": self.widths, "weights": self._all(weights), "biases": self._all(biases),
            "params": self._all(params), "param_sizes": [param.numel() for param in params], "eps": list(eps),
            "features": features, "activation": activation, "dice_training": dice_training, "normalize": normalize,
            "scale": scale,
        }  # fmt: skip

    def keep(self, tensor: torch.Tensor) -> int:
        """Address of a contiguous tensor that lives as long as the call."""
        tensor = tensor.contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()

    def _all(self, tensors) -> list[int]:
        return [self.keep(tensor.to(self.dtype)) for tensor in tensors]

    def _source(self, tables, ids):
        rows = ids[0].shape[0] if ids else tables[0].shape[0]
        content = [
            (self.keep(table), table.shape[1], self.keep(ids[k]) if ids else 0, not ids or ids[k].dtype == torch.int64)
            for k, table in enumerate(tables)
        ]
        return content, rows, sum(table.shape[1] for table in tables)

    def outputs(self, pooled, logsumexp, pair_weights, statistics) -> dict:
        """The call with the addresses of its results."""
        return self.content | {
            "pooled": _address(pooled), "logsumexp": _address(logsumexp), "pair_weights": _address(pair_weights),
            "statistics": _address(statistics),
        }  # fmt: skip


def forward(
    query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user, pair_begin,
    total_pairs, weights, biases, params, eps, dice_training, sparse_grad, features, activation, normalize, scale,
):  # fmt: skip
    """Kernel call of the op's forward: pooled [Q, D], logsumexp [Q] or [0], pair_weights [total_pairs], statistics."""
    from din_kernels import _cpu

    call = _Call(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user,
                 pair_begin, weights, biases, params, eps, dice_training, features, activation, normalize,
                 scale)  # fmt: skip
    wide = query_tables[0].new_empty(0, dtype=call.dtype)
    pooled = wide.new_empty(call.queries, call.dim)
    logsumexp = wide.new_empty(call.queries if normalize == "softmax" else 0, dtype=torch.float64)
    pair_weights = wide.new_zeros(total_pairs)
    statistics = wide.new_empty(2, sum(call.widths) if dice_training else 0)
    _cpu.local_activation_forward(call.outputs(pooled, logsumexp, pair_weights, statistics), torch.get_num_threads())
    return pooled.to(query_tables[0].dtype), logsumexp, pair_weights, statistics


def backward(
    grad_pooled, grad_pair_weights, query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask,
    query_to_user, pair_begin, total_pairs, weights, biases, params, eps, dice_training, sparse_grad, features,
    activation, normalize, scale, pooled, logsumexp, pair_weights, statistics, need_query, need_rows,
):  # fmt: skip
    """Kernel call of the op's backward: gradients of query and rows per table ([0] where not needed), and the MLP's."""
    from din_kernels import _cpu

    call = _Call(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user,
                 pair_begin, weights, biases, params, eps, dice_training, features, activation, normalize,
                 scale)  # fmt: skip
    pooled = pooled.to(call.dtype).contiguous()

    def empty(tables, rows, needed, dtype):
        return [table.new_empty((rows, table.shape[1]) if needed else 0, dtype=dtype) for table in tables]

    grad_query = empty(query_tables, call.queries, need_query, call.dtype)
    grad_rows = empty(row_tables, call.rows, need_rows, row_tables[0].dtype)
    groups = [[torch.empty(t.shape, dtype=call.dtype, device=t.device) for t in group]
              for group in (weights, biases, params)]  # fmt: skip
    returned = grad_pair_weights is not None and pair_begin is not None
    grads = {
        "pooled": call.keep(grad_pooled.to(call.dtype)),
        "pair_weights": call.keep(grad_pair_weights.to(call.dtype)) if returned else 0,
        "query": [grad.data_ptr() for grad in grad_query] if need_query else [],
        "rows": [grad.data_ptr() for grad in grad_rows] if need_rows else [],
        "weights": [grad.data_ptr() for grad in groups[0]], "biases": [grad.data_ptr() for grad in groups[1]],
        "params": [grad.data_ptr() for grad in groups[2]],
    }  # fmt: skip
    _cpu.local_activation_backward(
        call.outputs(pooled, logsumexp, pair_weights, statistics), grads, torch.get_num_threads()
    )
    dtype = query_tables[0].dtype
    return (
        [grad.to(dtype) for grad in grad_query],
        grad_rows,
        *([grad.to(t.dtype) for grad, t in zip(grads, group, strict=True)]
          for grads, group in zip(groups, (weights, biases, params), strict=True)),
    )  # fmt: skip
