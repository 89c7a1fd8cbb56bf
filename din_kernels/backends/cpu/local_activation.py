"""`local_activation` on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from din_kernels.backends import Request
from din_kernels.backends.calls import (
    LocalActivationCall,
    LocalActivationGradients,
    LocalActivationGrads,
    LocalActivationResult,
    LocalActivationSaved,
    arithmetic_dtype,
)
from din_kernels.backends.compiled import Description, room_like
from din_kernels.backends.cpu import refuses_tensors


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    reason = refuses_tensors(request)
    if reason is None and request.options["dice_training"] == "some":
        reason = "Dice must be in training or in evaluation in all hidden layers, got a mixture"
    return reason


def _as(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors in `dtype`; to() takes 1 us even where it changes nothing."""
    return [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]


def _like(grads: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Gradients in the dtypes of their tensors."""
    pairs = zip(grads, tensors, strict=True)
    return [grad if grad.dtype == tensor.dtype else grad.to(tensor.dtype) for grad, tensor in pairs]


def _in_arithmetic_dtype(call: LocalActivationCall, dtype: torch.dtype) -> LocalActivationCall:
    """The call with the MLP in the dtype that kernels compute in."""
    if all([tensor.dtype == dtype for tensor in (*call.weights, *call.biases, *call.params)]):
        return call
    return call._replace(
        weights=_as(call.weights, dtype), biases=_as(call.biases, dtype), params=_as(call.params, dtype)
    )


def forward(call: LocalActivationCall) -> LocalActivationResult:
    """Kernel call of the op's forward."""
    from din_kernels import _cpu

    described, dtype, queries = Description(), arithmetic_dtype(call.dtype), call.queries
    result = LocalActivationResult(
        pooled=torch.empty(queries, call.dim, dtype=dtype, device="cpu"),
        logsumexp=torch.empty(queries if call.normalize == "softmax" else 0, dtype=torch.float64, device="cpu"),
        pair_weights=(torch.zeros if call.total_pairs else torch.empty)(call.total_pairs, dtype=dtype, device="cpu"),
        statistics=torch.empty(2, sum(call.hidden) if call.dice_training else 0, dtype=dtype, device="cpu"),
    )
    _cpu.local_activation_forward(
        described.of(_in_arithmetic_dtype(call, dtype)), described.of(result), torch.get_num_threads()
    )
    return result if call.dtype == dtype else result._replace(pooled=result.pooled.to(call.dtype))


def backward(
    call: LocalActivationCall, saved: LocalActivationSaved, grads: LocalActivationGrads
) -> LocalActivationGradients:
    """Kernel call of the op's backward."""
    from din_kernels import _cpu

    described, dtype = Description(), arithmetic_dtype(call.dtype)

    def of_rows(tables, ids, rows, needed, dtype):
        if needed and not ids:
            return [room_like(table, dtype) for table in tables]
        shapes = [(rows, table.shape[1]) if needed else (0,) for table in tables]
        return [torch.empty(shape, dtype=dtype, device="cpu") for shape in shapes]

    def of_layers(tensors):
        return [room_like(tensor, dtype) for tensor in tensors]

    found = LocalActivationGradients(
        query=of_rows(call.query_tables, call.query_ids, call.queries, grads.need_query, dtype),
        history=of_rows(call.history_tables, call.history_ids, call.rows, grads.need_history, call.dtype),
        weights=of_layers(call.weights),
        biases=of_layers(call.biases),
        params=of_layers(call.params),
    )
    written = found
    if not (grads.need_query and grads.need_history):
        written = found._replace(
            query=found.query if grads.need_query else [], history=found.history if grads.need_history else []
        )
    if call.pair_begin is None or grads.pair_weights is None:
        grads = grads._replace(pair_weights=None)
    else:
        grads = grads._replace(pair_weights=grads.pair_weights.to(dtype))
    if call.dtype != dtype:
        saved, grads = saved._replace(pooled=saved.pooled.to(dtype)), grads._replace(pooled=grads.pooled.to(dtype))
    _cpu.local_activation_backward(
        described.of(_in_arithmetic_dtype(call, dtype)),
        described.of(saved),
        described.of(grads),
        described.of(written),
        torch.get_num_threads(),
    )
    return LocalActivationGradients(
        query=_as(found.query, call.dtype),
        history=found.history,
        weights=_like(found.weights, call.weights),
        biases=_like(found.biases, call.biases),
        params=_like(found.params, call.params),
    )
