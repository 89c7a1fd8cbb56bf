"""`local_activation` on a GPU: tensors to pointers for the CUDA kernels."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import (
    LocalActivationCall,
    LocalActivationGradients,
    LocalActivationGrads,
    LocalActivationResult,
    LocalActivationSaved,
)
from din_kernels.backends.cuda import DTYPES, compiled, name_of, pointer, refuses_tensors, stream_of, workspace
from din_kernels.backends.reference.local_activation import pair_index

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
    return tensor.contiguous() if tensor.dtype in DTYPES else tensor.to(torch.float32).contiguous()


class _Content:
    """A call as the compiled module takes it, and the contiguous tensors that its addresses point into."""

    def __init__(self, call: LocalActivationCall):
        self._alive: list[torch.Tensor] = []
        precision = "highest" if torch.get_float32_matmul_precision() == "highest" else "tensor cores"
        self.fields = {
            "dtype": name_of(call.dtype),
            "precision": precision,
            "queries": call.queries,
            "users": call.begin.shape[0],
            "rows_count": call.rows,
            "capacity": call.rows if call.row_index is None else call.row_index.shape[0],
            "dim": call.dim,
            "query": self._source(call.query_tables, call.query_ids),
            "rows": self._source(call.history_tables, call.history_ids),
            "begin": self.keep(call.begin),
            "length": self.keep(call.length),
            "row_index": self.keep(call.row_index),
            "row_mask": self.keep(call.row_mask),
            "query_to_user": self.keep(call.query_to_user),
            "pair_begin": pointer(call.pair_begin),
            "total_pairs": call.total_pairs,
            "layers": [self._layer(call, layer) for layer in range(len(call.weights))],
            "features": call.features,
            "activation": call.activation,
            "normalize": call.normalize,
            "dice_training": call.dice_training,
            "scale": call.scale,
            "chunk_bytes": CHUNK_BYTES,
        }

    def keep(self, tensor: torch.Tensor | None) -> int:
        """Address of a contiguous tensor that lives as long as the call; 0 for one that is left out."""
        if tensor is None:
            return 0
        tensor = tensor.contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()

    def _source(self, tables, ids) -> list[tuple[int, int, int, int, str]]:
        """Per table its address and shape, the address of its ids and their dtype."""
        return [
            (
                self.keep(table),
                *table.shape,
                self.keep(ids[k]) if ids else 0,
                name_of(ids[k].dtype) if ids else "int64",
            )
            for k, table in enumerate(tables)
        ]

    def _layer(self, call: LocalActivationCall, layer: int) -> dict:
        def readable(tensor):
            tensor = _readable(tensor)
            self._alive.append(tensor)
            return _typed(tensor)

        return {
            "width": call.weights[layer].shape[0],
            "weight": readable(call.weights[layer]),
            "bias": readable(call.biases[layer]),
            "params": [readable(param) for param in call.params_of(layer)],
            "eps": call.eps[layer] if layer < len(call.eps) else 0.0,
        }


def forward(call: LocalActivationCall) -> LocalActivationResult:
    """Kernel call of the op's forward."""
    kernels, like, content = compiled(), call.query_tables[0], _Content(call)
    result = LocalActivationResult(
        pooled=like.new_empty(call.queries, call.dim),
        logsumexp=like.new_empty(call.queries if call.normalize == "softmax" else 0, dtype=torch.float64),
        pair_weights=like.new_zeros(call.total_pairs, dtype=torch.float32),
        statistics=like.new_empty(2, sum(call.hidden) if call.dice_training else 0, dtype=torch.float32),
    )
    if result.pooled.numel():
        fields = content.fields | {name: pointer(tensor) for name, tensor in result._asdict().items()}
        with stream_of(like) as stream:  # the workspace, too, is planned for the tensor's device
            scratch = workspace("local_activation_forward", like, kernels.local_activation_forward_workspace(fields))
            kernels.local_activation_forward(fields | {"workspace": scratch.data_ptr()}, stream)
    elif call.dice_training:
        result.statistics[0], result.statistics[1] = 0, 1
    return result


def backward(
    call: LocalActivationCall, saved: LocalActivationSaved, grads: LocalActivationGrads
) -> LocalActivationGradients:
    """Kernel call of the op's backward."""
    kernels, like, content = compiled(), call.query_tables[0], _Content(call)
    returned = grads.pair_weights is not None and call.pair_begin is not None
    grad_query = like.new_zeros(call.queries, call.dim) if grads.need_query else None
    # Candidates that share a history add to the same rows, in fp32.
    rows_dtype = like.dtype if call.query_to_user is None else torch.float32
    grad_rows = like.new_zeros(call.rows, call.dim, dtype=rows_dtype) if grads.need_history else None
    pair_rows = grad_pairs = None
    fields = content.fields
    if grads.need_history and call.query_to_user is not None and torch.are_deterministic_algorithms_enabled():
        pair_rows = pair_index(call.begin, call.length, call.row_index, call.query_to_user, call.queries)[2]
        grad_pairs = grad_rows.new_empty(pair_rows.shape[0], call.dim)
        fields |= {"grad_pairs": pointer(grad_pairs), "pairs": pair_rows.shape[0]}
    layers = [_layer_grads(layer, weight) for layer, weight in zip(fields["layers"], call.weights, strict=True)]
    if grads.pooled.numel():
        fields |= {
            "grad_pooled": content.keep(grads.pooled),
            "grad_pair_weights": content.keep(grads.pair_weights.float()) if returned else 0,
            "grad_query": pointer(grad_query),
            "grad_rows": pointer(grad_rows),
            **{name: content.keep(tensor) for name, tensor in saved._asdict().items()},
        }
        with stream_of(like) as stream:
            scratch = workspace("local_activation_backward", like, kernels.local_activation_backward_workspace(fields))
            kernels.local_activation_backward(fields | {"workspace": scratch.data_ptr()}, stream)
        if grad_pairs is not None:
            grad_rows.index_add_(0, pair_rows, grad_pairs)
    return LocalActivationGradients(
        query=_per_table(grad_query, call.query_tables, grads.need_query),
        history=_per_table(grad_rows, call.history_tables, grads.need_history),
        weights=[each["weight"].to(weight.dtype) for each, weight in zip(layers, call.weights, strict=True)],
        biases=[each["bias"].to(bias.dtype) for each, bias in zip(layers, call.biases, strict=True)],
        params=[grad for layer, each in enumerate(layers[:-1]) for grad in _param_grads(call, layer, each)],
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


def _param_grads(call: LocalActivationCall, layer: int, grads: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of slope or alpha, and of Dice's given mean and var: dmean = -rstd du, dvar = -rstd^2 / 2 du u."""
    params = dict(zip(call.param_names, call.params_of(layer), strict=True))
    full = [grads["param"]] if params else []
    if "var" in params:
        rstd = (params["var"].float() + call.eps[layer]).rsqrt()
        full += [-rstd * grads["u"], -0.5 * rstd.square() * grads["u_u"]]
    return [
        (grad.sum(0, keepdim=True) if param.numel() == 1 else grad).reshape(param.shape).to(param)
        for grad, param in zip(full, params.values(), strict=True)
    ]
