"""`local_activation` on the CPU: tensors to pointers for the compiled core."""

from __future__ import annotations

import torch

from din_kernels.backends import Request

FEATURES = ("concat", "product")
DTYPES = (torch.float32, torch.float64)
PARAMS_PER_LAYER = {"prelu": 1, "dice": 3}


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    options = request.options
    if request.device != "cpu":
        return f"its tensors must be on the CPU, got {request.device}"
    if request.dtype not in DTYPES:
        return f"dtype must be float32 or float64, got {request.dtype}"
    if options["features"] not in FEATURES:
        return f"features must be one of {FEATURES}, got {options['features']!r}"
    if options["gather"]:
        return "rows by id (Gather) are not fused yet"
    if options["dice_training"]:
        return "Dice in training (batch statistics) is not fused yet"
    if options["hidden_layers"] > 3:
        return f"at most 3 hidden layers are supported, got {options['hidden_layers']}"
    return None


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _layers(weights, biases, params, activation):
    """The MLP as the core takes it: pointers and widths per layer; the contiguous tensors are returned to live on."""
    per_layer = PARAMS_PER_LAYER.get(activation, 0)
    weights = [weight.contiguous() for weight in weights]
    biases = [bias.contiguous() for bias in biases]
    params = [param.contiguous() for param in params]
    hidden = len(weights) - 1
    return {
        "widths": [weight.shape[0] for weight in weights[:-1]],
        "weights": [weight.data_ptr() for weight in weights],
        "biases": [bias.data_ptr() for bias in biases],
        "params": [param.data_ptr() for param in params],
        "param_sizes": [params[layer * per_layer].numel() if per_layer else 0 for layer in range(hidden)],
    }, (weights, biases, params)


def forward(
    query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user, pair_begin,
    total_pairs, weights, biases, params, eps, dice_training, sparse_grad, features, activation, normalize, scale,
):  # fmt: skip
    """Kernel call of the op's forward: pooled [Q, D], logsumexp [Q] or [0], pair_weights [total_pairs]."""
    from din_kernels import _cpu

    (query,), (rows,) = query_tables, row_tables
    query, rows = query.contiguous(), rows.contiguous()
    layers, _alive = _layers(weights, biases, params, activation)
    pooled = torch.empty_like(query)
    logsumexp = query.new_empty(query.shape[0] if normalize == "softmax" else 0)
    pair_weights = query.new_zeros(total_pairs)
    _cpu.local_activation_forward(
        query.dtype == torch.float64, query.shape[0], begin.shape[0], rows.shape[0], query.shape[1],
        query.data_ptr(), rows.data_ptr(), begin.data_ptr(), length.data_ptr(), _pointer(row_index),
        _pointer(query_to_user), _pointer(pair_begin),
        layers, list(eps), features, activation, normalize, scale,
        pooled.data_ptr(), _pointer(logsumexp), _pointer(pair_weights), torch.get_num_threads(),
    )  # fmt: skip
    return pooled, logsumexp, pair_weights, query.new_empty(2, 0)


def backward(
    grad_pooled, grad_pair_weights, query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask,
    query_to_user, pair_begin, total_pairs, weights, biases, params, eps, dice_training, sparse_grad, features,
    activation, normalize, scale, pooled, logsumexp, pair_weights, statistics, need_query, need_rows,
):  # fmt: skip
    """Kernel call of the op's backward: gradients of query, rows (or [0] where not needed), weights, biases, params."""
    from din_kernels import _cpu

    (query,), (rows,) = query_tables, row_tables
    query, rows, grad_pooled = query.contiguous(), rows.contiguous(), grad_pooled.contiguous()
    returned = grad_pair_weights is not None and pair_begin is not None
    grad_pair_weights = grad_pair_weights.contiguous() if returned else None
    layers, _alive = _layers(weights, biases, params, activation)
    grad_query = torch.empty_like(query) if need_query else query.new_empty(0)
    grad_rows = torch.empty_like(rows) if need_rows else rows.new_empty(0)
    grads = [[torch.empty_like(t, memory_format=torch.contiguous_format) for t in group]
             for group in (weights, biases, params)]  # fmt: skip
    _cpu.local_activation_backward(
        query.dtype == torch.float64, query.shape[0], begin.shape[0], rows.shape[0], query.shape[1],
        query.data_ptr(), rows.data_ptr(), begin.data_ptr(), length.data_ptr(), _pointer(row_index),
        _pointer(query_to_user), _pointer(pair_begin),
        layers, list(eps), features, activation, normalize, scale,
        pooled.contiguous().data_ptr(), _pointer(logsumexp), _pointer(pair_weights),
        grad_pooled.data_ptr(), _pointer(grad_pair_weights),
        _pointer(grad_query) if need_query else 0, _pointer(grad_rows) if need_rows else 0,
        [t.data_ptr() for t in grads[0]], [t.data_ptr() for t in grads[1]], [t.data_ptr() for t in grads[2]],
        torch.get_num_threads(),
    )  # fmt: skip
    return [grad_query], [grad_rows], *grads
