"""`local_activation` on a GPU: tensors to pointers for the CUDA kernels."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.cuda import compiled, name_of, pointer, refuses_tensors, stream_of, workspace
from din_kernels.backends.reference.local_activation import pair_index

PARAMS_PER_LAYER = {"prelu": 1, "dice": 3}
CHUNK_BYTES = 128 * 2**20  # of the folded first layer's matrices, for as many candidates at a time


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    options = request.options
    reason = refuses_tensors(request)
    if reason is not None:
        return reason
    if options["dice_training"] == "some":
        return "dice must be in training in all hidden layers or in none"
    return None


def _typed(tensor: torch.Tensor) -> tuple[int, str, int]:
    return tensor.data_ptr(), name_of(tensor.dtype), tensor.numel()


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, of a dtype that the kernels know."""
    known = (torch.float32, torch.bfloat16, torch.float16)
    return tensor.contiguous() if tensor.dtype in known else tensor.to(torch.float32).contiguous()


def _tables(tables, ids):
    """Row tables as the kernels take them, and the tensors to keep alive."""
    tables, ids = [table.contiguous() for table in tables], [each.contiguous() for each in ids]
    described = [
        (table.data_ptr(), *table.shape, ids[k].data_ptr() if ids else 0, name_of(ids[k].dtype) if ids else "int64")
        for k, table in enumerate(tables)
    ]
    return described, (tables, ids)


def _layers(weights, biases, params, eps, activation, dice_training):
    per_layer = 1 if dice_training else PARAMS_PER_LAYER.get(activation, 0)
    weights, biases, params = ([_readable(tensor) for tensor in group] for group in (weights, biases, params))
    layers = []
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        of_layer = params[layer * per_layer : (layer + 1) * per_layer] if layer < len(weights) - 1 else []
        layers.append({
            "width": weight.shape[0], "weight": _typed(weight), "bias": _typed(bias),
            "params": [_typed(param) for param in of_layer], "eps": eps[layer] if layer < len(eps) else 0.0,
        })  # fmt: skip
    return layers, (weights, biases, params)


def _call(
    query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user, pair_begin,
    total_pairs, weights, biases, params, eps, dice_training, features, activation, normalize, scale,
):  # fmt: skip
    """The call as the compiled module takes it, and the tensors to keep alive."""
    query, alive_query = _tables(query_tables, query_ids)
    rows, alive_rows = _tables(row_tables, row_ids)
    layers, alive_layers = _layers(weights, biases, params, eps, activation, dice_training)
    indices = [
        each if each is None else each.contiguous() for each in (begin, length, row_index, row_mask, query_to_user)
    ]
    queries = (query_ids[0] if query_ids else query_tables[0]).shape[0]
    rows_count = (row_ids[0] if row_ids else row_tables[0]).shape[0]
    precision = "highest" if torch.get_float32_matmul_precision() == "highest" else "tensor cores"
    call = {
        "dtype": name_of(query_tables[0].dtype), "precision": precision, "queries": queries, "users": begin.shape[0],
        "rows_count": rows_count, "capacity": rows_count if row_index is None else row_index.shape[0],
        "dim": sum(table.shape[1] for table in query_tables), "query": query, "rows": rows,
        **dict(zip(("begin", "length", "row_index", "row_mask", "query_to_user"), map(pointer, indices), strict=True)),
        "pair_begin": pointer(pair_begin), "total_pairs": total_pairs, "layers": layers, "features": features,
        "activation": activation, "normalize": normalize, "dice_training": dice_training, "scale": scale,
        "chunk_bytes": CHUNK_BYTES,
    }  # fmt: skip
    return call, (alive_query, alive_rows, alive_layers, indices)


def forward(
    query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user, pair_begin,
    total_pairs, weights, biases, params, eps, dice_training, sparse_grad, features, activation, normalize, scale,
):  # fmt: skip
    """Kernel call of the op's forward: pooled [Q, D], logsumexp [Q] or [0] (double), pair_weights, statistics."""
    kernels, like = compiled(), query_tables[0]
    call, _alive = _call(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask,
                         query_to_user, pair_begin, total_pairs, weights, biases, params, eps, dice_training, features,
                         activation, normalize, scale)  # fmt: skip
    queries = call["queries"]
    pooled = like.new_empty(queries, call["dim"])
    logsumexp = like.new_empty(queries if normalize == "softmax" else 0, dtype=torch.float64)
    pair_weights = like.new_zeros(total_pairs, dtype=torch.float32)
    hidden = sum(bias.shape[0] for bias in biases[:-1])
    statistics = like.new_empty(2, hidden if dice_training else 0, dtype=torch.float32)
    if pooled.numel():
        call |= {"pooled": pooled.data_ptr(), "logsumexp": logsumexp.data_ptr(),
                 "pair_weights": pair_weights.data_ptr(), "statistics": statistics.data_ptr()}  # fmt: skip
        with stream_of(like) as stream:  # the workspace, too, is planned for the tensor's device
            scratch = workspace("local_activation_forward", like, kernels.local_activation_forward_workspace(call))
            kernels.local_activation_forward(call | {"workspace": scratch.data_ptr()}, stream)
    elif dice_training:
        statistics[0], statistics[1] = 0, 1
    return pooled, logsumexp, pair_weights, statistics


def backward(
    grad_pooled, grad_pair_weights, query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask,
    query_to_user, pair_begin, total_pairs, weights, biases, params, eps, dice_training, sparse_grad, features,
    activation, normalize, scale, pooled, logsumexp, pair_weights, statistics, need_query, need_rows,
):  # fmt: skip
    """Kernel call of the op's backward: gradients of the tables' rows (or [0] where not needed), weights, biases,
    params."""
    kernels, like = compiled(), query_tables[0]
    call, _alive = _call(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask,
                         query_to_user, pair_begin, total_pairs, weights, biases, params, eps, dice_training, features,
                         activation, normalize, scale)  # fmt: skip
    returned = grad_pair_weights is not None and pair_begin is not None
    grad_pair_weights = grad_pair_weights.float() if returned else None
    read = [grad_pooled, grad_pair_weights, pooled, logsumexp, pair_weights, statistics]
    read = [None if tensor is None else tensor.contiguous() for tensor in read]
    grad_query = like.new_zeros(call["queries"], call["dim"]) if need_query else None
    # Candidates that share a history add to the same rows, in fp32.
    rows_dtype = like.dtype if query_to_user is None else torch.float32
    grad_rows = like.new_zeros(call["rows_count"], call["dim"], dtype=rows_dtype) if need_rows else None
    pair_rows = grad_pairs = None
    if need_rows and query_to_user is not None and torch.are_deterministic_algorithms_enabled():
        pair_rows = pair_index(begin, length, row_index, query_to_user, call["queries"])[2]
        grad_pairs = grad_rows.new_empty(pair_rows.shape[0], call["dim"])
        call |= {"grad_pairs": pointer(grad_pairs), "pairs": pair_rows.shape[0]}
    grads = [_layer_grads(layer, weight) for layer, weight in zip(call["layers"], weights, strict=True)]
    if grad_pooled.numel():
        names = ("grad_pooled", "grad_pair_weights", "pooled", "logsumexp", "pair_weights", "statistics")
        call |= dict(zip(names, map(pointer, read), strict=True))
        call |= {"grad_query": pointer(grad_query), "grad_rows": pointer(grad_rows)}
        with stream_of(like) as stream:
            scratch = workspace("local_activation_backward", like, kernels.local_activation_backward_workspace(call))
            kernels.local_activation_backward(call | {"workspace": scratch.data_ptr()}, stream)
        if grad_pairs is not None:
            grad_rows.index_add_(0, pair_rows, grad_pairs)
    return (
        _per_table(grad_query, query_tables, need_query),
        _per_table(grad_rows, row_tables, need_rows),
        [each["weight"].to(weight.dtype) for each, weight in zip(grads, weights, strict=True)],
        [each["bias"].to(bias.dtype) for each, bias in zip(grads, biases, strict=True)],
        _param_grads(grads[:-1], params, eps, activation, dice_training),
    )


def _layer_grads(layer: dict, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a layer in fp32, whose addresses join `layer`; of u = (z - mean) rstd for Dice's mean and var."""
    grads = {name: weight.new_zeros(weight.shape[0], dtype=torch.float32) for name in ("bias", "param", "u", "u_u")}
    grads["weight"] = torch.zeros_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
    layer |= {f"grad_{name}": tensor.data_ptr() for name, tensor in grads.items()}
    return grads


def _per_table(grad, tables, needed):
    """The columns of each table, in its dtype."""
    if not needed:
        return [table.new_empty(0) for table in tables]
    grad = grad.to(tables[0].dtype)
    if len(tables) == 1:
        return [grad]
    return [columns.contiguous() for columns in grad.split([table.shape[1] for table in tables], 1)]


def _param_grads(grads, params, eps, activation, dice_training):
    """Gradients of slope or alpha, and of Dice's given mean and var: dmean = -rstd du, dvar = -rstd^2 / 2 du u."""
    per_layer = 1 if dice_training else PARAMS_PER_LAYER.get(activation, 0)
    result = []
    for layer in range(len(grads) if per_layer else 0):
        given = params[layer * per_layer : (layer + 1) * per_layer]
        full = [grads[layer]["param"]]
        if per_layer == 3:
            rstd = (given[2].float() + eps[layer]).rsqrt()
            full += [-rstd * grads[layer]["u"], -0.5 * rstd.square() * grads[layer]["u_u"]]
        for grad, param in zip(full, given, strict=True):
            result.append((grad.sum(0, keepdim=True) if param.numel() == 1 else grad).reshape(param.shape).to(param))
    return result
