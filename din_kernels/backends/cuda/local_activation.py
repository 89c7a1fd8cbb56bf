"""`local_activation` on a GPU."""

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
from din_kernels.backends.compiled import Description
from din_kernels.backends.cuda import DTYPES, compiled, refuses_tensors, stream_of, workspace
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


def _readable(call: LocalActivationCall) -> LocalActivationCall:
    """The call with the MLP in dtypes that the kernels know."""

    def known(tensors):
        return [tensor if tensor.dtype in DTYPES else tensor.to(torch.float32) for tensor in tensors]

    return call._replace(weights=known(call.weights), biases=known(call.biases), params=known(call.params))


def _launch() -> dict:
    """How a call runs, beside what it is."""
    precision = "highest" if torch.get_float32_matmul_precision() == "highest" else "tensor cores"
    return {"precision": precision, "chunk_bytes": CHUNK_BYTES}


def forward(call: LocalActivationCall) -> LocalActivationResult:
    """Kernel call of the op's forward."""
    kernels, described, like = compiled(), Description(), call.query_tables[0]
    result = LocalActivationResult(
        pooled=like.new_empty(call.queries, call.dim),
        logsumexp=like.new_empty(call.queries if call.normalize == "softmax" else 0, dtype=torch.float64),
        pair_weights=like.new_zeros(call.total_pairs, dtype=torch.float32),
        statistics=like.new_empty(2, sum(call.hidden) if call.dice_training else 0, dtype=torch.float32),
    )
    if result.pooled.numel():
        fields, launch = described.of(_readable(call)), _launch()
        with stream_of(like) as stream:  # the workspace, too, is planned for the tensor's device
            size = kernels.local_activation_forward_workspace(fields, launch)
            launch["workspace"] = described.array(workspace("local_activation_forward", like, size))
            kernels.local_activation_forward(fields, described.of(result), launch, stream)
    elif call.dice_training:
        result.statistics[0], result.statistics[1] = 0, 1
    return result


def backward(
    call: LocalActivationCall, saved: LocalActivationSaved, grads: LocalActivationGrads
) -> LocalActivationGradients:
    """Kernel call of the op's backward."""
    kernels, like = compiled(), call.query_tables[0]
    # Candidates that share a history add to the same rows, in fp32.
    history_dtype = like.dtype if call.query_to_user is None else torch.float32
    # As the kernels write them: rows of all tables side by side, and what the MLP's gradients follow from.
    found = LocalActivationGradients(
        query=[like.new_zeros(call.queries, call.dim)] if grads.need_query else [],
        history=[like.new_zeros(call.rows, call.dim, dtype=history_dtype)] if grads.need_history else [],
        weights=[like.new_zeros(weight.shape, dtype=torch.float32) for weight in call.weights],
        biases=[like.new_zeros(bias.shape, dtype=torch.float32) for bias in call.biases],
        params=[like.new_zeros(width, dtype=torch.float32) for width in call.hidden for _ in call.param_names],
    )
    if grads.pooled.numel():
        _run_backward(kernels, call, saved, grads, found)
    params = [
        grad
        for layer in range(len(call.hidden))
        for grad in _param_grads(call, layer, found.params[layer * len(call.param_names) :])
    ]
    return LocalActivationGradients(
        query=_per_table(found.query, call.query_tables),
        history=_per_table(found.history, call.history_tables),
        weights=[grad.to(weight.dtype) for grad, weight in zip(found.weights, call.weights, strict=True)],
        biases=[grad.to(bias.dtype) for grad, bias in zip(found.biases, call.biases, strict=True)],
        params=params,
    )


def _run_backward(kernels, call, saved, grads, found) -> None:
    described, like, launch = Description(), call.query_tables[0], _launch()
    pair_rows = grad_pairs = None
    if grads.need_history and call.query_to_user is not None and torch.are_deterministic_algorithms_enabled():
        pair_rows = pair_index(call.begin, call.length, call.row_index, call.query_to_user, call.queries)[2]
        grad_pairs = found.history[0].new_empty(pair_rows.shape[0], call.dim)
    returned = grads.pair_weights if call.pair_begin is not None else None
    grads = grads._replace(pair_weights=None if returned is None else returned.float())
    fields = described.of(_readable(call))
    launch["grad_pairs"] = described.array(grad_pairs)
    with stream_of(like) as stream:
        size = kernels.local_activation_backward_workspace(fields, launch)
        launch["workspace"] = described.array(workspace("local_activation_backward", like, size))
        kernels.local_activation_backward(fields, *map(described.of, (saved, grads, found)), launch, stream)
    if grad_pairs is not None:
        found.history[0].index_add_(0, pair_rows, grad_pairs)


def _per_table(grads, tables):
    """The columns of each table, in its dtype; empty where no gradient is needed."""
    if not grads:
        return [table.new_empty(0) for table in tables]
    grad = grads[0].to(tables[0].dtype)
    if len(tables) == 1:
        return [grad]
    return [columns.contiguous() for columns in grad.split([table.shape[1] for table in tables], 1)]


def _param_grads(call: LocalActivationCall, layer: int, found: list[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of a layer's parameters from what the kernels wrote.

    That is the gradient of slope or alpha, and for Dice's mean and var the sums of du and du u with
    u = (z - mean) rstd: dmean = -rstd du, dvar = -rstd^2 / 2 du u.
    """
    params = dict(zip(call.param_names, call.params_of(layer), strict=True))
    full = found[: len(params)]
    if "var" in params:
        rstd = (params["var"].float() + call.eps[layer]).rsqrt()
        full = [full[0], -rstd * full[1], -0.5 * rstd.square() * full[2]]
    return [
        (grad.sum(0, keepdim=True) if param.numel() == 1 else grad).reshape(param.shape).to(param)
        for grad, param in zip(full, params.values(), strict=True)
    ]
