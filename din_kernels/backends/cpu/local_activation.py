"""`local_activation` on the CPU."""

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
from din_kernels.backends.compiled import Description
from din_kernels.backends.cpu import refuses_tensors


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    reason = refuses_tensors(request)
    if reason is None and request.options["dice_training"] == "some":
        reason = "Dice must be in training or in evaluation in all hidden layers, got a mixture"
    return reason


def _in_arithmetic_dtype(call: LocalActivationCall, dtype: torch.dtype) -> LocalActivationCall:
    """The call with the MLP in the dtype that kernels compute in."""
    return call._replace(
        weights=[tensor.to(dtype) for tensor in call.weights],
        biases=[tensor.to(dtype) for tensor in call.biases],
        params=[tensor.to(dtype) for tensor in call.params],
    )


def forward(call: LocalActivationCall) -> LocalActivationResult:
    """Kernel call of the op's forward."""
    from din_kernels import _cpu

    described, like, dtype = Description(), call.query_tables[0], arithmetic_dtype(call.dtype)
    result = LocalActivationResult(
        pooled=like.new_empty(call.queries, call.dim, dtype=dtype),
        logsumexp=like.new_empty(call.queries if call.normalize == "softmax" else 0, dtype=torch.float64),
        pair_weights=like.new_zeros(call.total_pairs, dtype=dtype),
        statistics=like.new_empty(2, sum(call.hidden) if call.dice_training else 0, dtype=dtype),
    )
    _cpu.local_activation_forward(
        described.of(_in_arithmetic_dtype(call, dtype)), described.of(result), torch.get_num_threads()
    )
    return result._replace(pooled=result.pooled.to(call.dtype))


def backward(
    call: LocalActivationCall, saved: LocalActivationSaved, grads: LocalActivationGrads
) -> LocalActivationGradients:
    """Kernel call of the op's backward."""
    from din_kernels import _cpu

    described, dtype = Description(), arithmetic_dtype(call.dtype)

    def of_rows(tables, rows, needed, dtype):
        return [table.new_empty((rows, table.shape[1]) if needed else 0, dtype=dtype) for table in tables]

    def of_layers(tensors):
        return [torch.empty(tensor.shape, dtype=dtype, device=tensor.device) for tensor in tensors]

    found = LocalActivationGradients(
        query=of_rows(call.query_tables, call.queries, grads.need_query, dtype),
        history=of_rows(call.history_tables, call.rows, grads.need_history, call.dtype),
        weights=of_layers(call.weights),
        biases=of_layers(call.biases),
        params=of_layers(call.params),
    )
    returned = grads.pair_weights if call.pair_begin is not None else None
    _cpu.local_activation_backward(
        described.of(_in_arithmetic_dtype(call, dtype)),
        described.of(saved._replace(pooled=saved.pooled.to(dtype))),
        described.of(
            grads._replace(pooled=grads.pooled.to(dtype), pair_weights=None if returned is None else returned.to(dtype))
        ),
        described.of(
            found._replace(
                query=found.query if grads.need_query else [], history=found.history if grads.need_history else []
            )
        ),
        torch.get_num_threads(),
    )
    return found._replace(
        query=[grad.to(call.dtype) for grad in found.query],
        weights=_as(found.weights, call.weights),
        biases=_as(found.biases, call.biases),
        params=_as(found.params, call.params),
    )


def _as(grads, tensors) -> list[torch.Tensor]:
    """Gradients in the dtypes of their tensors."""
    return [grad.to(tensor.dtype) for grad, tensor in zip(grads, tensors, strict=True)]
