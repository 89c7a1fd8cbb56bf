"""`local_activation` on the CPU: tensors to addresses for the compiled core."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.calls import (
    LocalActivationCall,
    LocalActivationGradients,
    LocalActivationGrads,
    LocalActivationResult,
    LocalActivationSaved,
    arithmetic_dtype,
)
from din_kernels.backends.cpu import name_of, pointer, refuses_tensors


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    reason = refuses_tensors(request)
    if reason is None and request.options["dice_training"] == "some":
        reason = "Dice must be in training or in evaluation in all hidden layers, got a mixture"
    return reason


class _Content:
    """A call as the core takes it, and the contiguous tensors that its addresses point into."""

    def __init__(self, call: LocalActivationCall):
        self._alive: list[torch.Tensor] = []
        self.dtype = arithmetic_dtype(call.dtype)
        self.fields = {
            "dtype": name_of(call.dtype),
            "queries": call.queries,
            "users": call.begin.shape[0],
            "rows_count": call.rows,
            "dim": call.dim,
            "query": self._source(call.query_tables, call.query_ids),
            "rows": self._source(call.history_tables, call.history_ids),
            "begin": pointer(call.begin),
            "length": pointer(call.length),
            "row_index": pointer(call.row_index),
            "row_mask": pointer(call.row_mask),
            "query_to_user": pointer(call.query_to_user),
            "pair_begin": pointer(call.pair_begin),
            "widths": call.hidden,
            "weights": self._all(call.weights),
            "biases": self._all(call.biases),
            "params": self._all(call.params),
            "param_sizes": [param.numel() for param in call.params],
            "eps": list(call.eps),
            "features": call.features,
            "activation": call.activation,
            "dice_training": call.dice_training,
            "normalize": call.normalize,
            "scale": call.scale,
        }

    def keep(self, tensor: torch.Tensor) -> int:
        """Address of a contiguous tensor that lives as long as the call."""
        tensor = tensor.contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()

    def _all(self, tensors) -> list[int]:
        return [self.keep(tensor.to(self.dtype)) for tensor in tensors]

    def _source(self, tables, ids) -> list[tuple[int, int, int, bool]]:
        """Per table its address, its width, the address of its ids and whether they are int64."""
        return [
            (self.keep(table), table.shape[1], self.keep(ids[k]) if ids else 0, not ids or ids[k].dtype == torch.int64)
            for k, table in enumerate(tables)
        ]

    def with_results(self, result: LocalActivationResult) -> dict:
        """The call with the addresses of its results."""
        return self.fields | {name: pointer(tensor) for name, tensor in result._asdict().items()}


def forward(call: LocalActivationCall) -> LocalActivationResult:
    """Kernel call of the op's forward."""
    from din_kernels import _cpu

    content, like = _Content(call), call.query_tables[0]
    result = LocalActivationResult(
        pooled=like.new_empty(call.queries, call.dim, dtype=content.dtype),
        logsumexp=like.new_empty(call.queries if call.normalize == "softmax" else 0, dtype=torch.float64),
        pair_weights=like.new_zeros(call.total_pairs, dtype=content.dtype),
        statistics=like.new_empty(2, sum(call.hidden) if call.dice_training else 0, dtype=content.dtype),
    )
    _cpu.local_activation_forward(content.with_results(result), torch.get_num_threads())
    return result._replace(pooled=result.pooled.to(call.dtype))


def backward(
    call: LocalActivationCall, saved: LocalActivationSaved, grads: LocalActivationGrads
) -> LocalActivationGradients:
    """Kernel call of the op's backward."""
    from din_kernels import _cpu

    content = _Content(call)
    saved = saved._replace(pooled=saved.pooled.to(content.dtype).contiguous())

    def of_rows(tables, rows, needed, dtype):
        return [table.new_empty((rows, table.shape[1]) if needed else 0, dtype=dtype) for table in tables]

    def of_layers(tensors):
        return [torch.empty(tensor.shape, dtype=content.dtype, device=tensor.device) for tensor in tensors]

    found = LocalActivationGradients(
        query=of_rows(call.query_tables, call.queries, grads.need_query, content.dtype),
        history=of_rows(call.history_tables, call.rows, grads.need_history, call.dtype),
        weights=of_layers(call.weights),
        biases=of_layers(call.biases),
        params=of_layers(call.params),
    )
    returned = grads.pair_weights is not None and call.pair_begin is not None
    addresses = {
        "pooled": content.keep(grads.pooled.to(content.dtype)),
        "pair_weights": content.keep(grads.pair_weights.to(content.dtype)) if returned else 0,
        "query": _addresses(found.query) if grads.need_query else [],
        "rows": _addresses(found.history) if grads.need_history else [],
        "weights": _addresses(found.weights),
        "biases": _addresses(found.biases),
        "params": _addresses(found.params),
    }
    _cpu.local_activation_backward(content.with_results(saved), addresses, torch.get_num_threads())
    return found._replace(
        query=[grad.to(call.dtype) for grad in found.query],
        weights=_as(found.weights, call.weights),
        biases=_as(found.biases, call.biases),
        params=_as(found.params, call.params),
    )


def _addresses(tensors) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _as(grads, tensors) -> list[torch.Tensor]:
    """Gradients in the dtypes of their tensors."""
    return [grad.to(tensor.dtype) for grad, tensor in zip(grads, tensors, strict=True)]
