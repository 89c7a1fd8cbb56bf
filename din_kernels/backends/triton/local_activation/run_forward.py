"""`local_activation` in Triton, forward: tensors to launches."""

from __future__ import annotations

import torch
import triton

from din_kernels.backends.calls import LocalActivationCall, LocalActivationResult
from din_kernels.backends.triton import on_device_of
from din_kernels.backends.triton.local_activation.arguments import Results
from din_kernels.backends.triton.local_activation.forward import combine_kernel, forward_kernel, normalize_kernel
from din_kernels.backends.triton.local_activation.inputs import Prepared, inverse_deviation, make_weights, prepare
from din_kernels.backends.triton.local_activation.memory import FORWARD
from din_kernels.backends.triton.local_activation.outer import chunks
from din_kernels.backends.triton.local_activation.plan import Launch, plan
from din_kernels.backends.triton.local_activation.statistics import statistics_kernel


def _moments(call: Prepared, launch: Launch, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch mean and biased variance [H] of a hidden layer's z, in double; 0 and 1 where there is no pair."""
    width, unit = call.unit.widths[layer], call.unit
    counts, means, squares = [], [], []
    for chunk in chunks(call):
        count = torch.zeros(launch.programs, dtype=torch.float32, device=call.device)
        mean, square = (count.new_zeros(launch.programs, width) for _ in range(2))
        statistics_kernel[(launch.programs,)](
            chunk.inputs,
            count,
            mean,
            square,
            chunk.first,
            chunk.last,
            LAYER=layer,
            UNIT=unit,
            TILE=launch.tile,
            **launch.options,
        )
        counts.append(count), means.append(mean), squares.append(square)
    counts, means, squares = (torch.cat(each).double() for each in (counts, means, squares))
    total = counts.sum()
    share = (counts / total.clamp(min=1)).unsqueeze(1)
    mean = (share * means).sum(0)
    var = (squares.sum(0) + (counts.unsqueeze(1) * (means - mean).square()).sum(0)) / total.clamp(min=1)
    return mean, torch.where(total > 0, var, 1.0)


def _with_statistics(call: Prepared, launch: Launch) -> tuple[Prepared, torch.Tensor]:
    """The call with batch statistics among its parameters, layer by layer, since each needs those below; and the
    statistics [2, sum of hidden widths]: means, then biased variances."""
    widths = call.unit.widths[: call.unit.hidden]
    statistics = torch.empty(2, sum(widths), dtype=torch.float32, device=call.device)
    means, variances = (row.split(widths) for row in statistics)
    for layer in range(call.unit.hidden):
        mean, var = _moments(call, launch, layer)
        means[layer].copy_(mean)
        variances[layer].copy_(var)
        inverse = inverse_deviation(variances[layer], call.given.eps[layer])
        call = call.with_params(layer, means[layer], inverse)
    return call, statistics


def forward(given: LocalActivationCall) -> LocalActivationResult:
    """Kernel calls of the op's forward."""
    call = prepare(given)
    unit, queries, softmax = call.unit, call.queries, given.normalize == "softmax"
    wide = {"dtype": torch.float32, "device": call.device}
    pooled = torch.empty(queries, unit.dim, dtype=call.dtype, device=call.device)
    logsumexp = torch.empty(queries if softmax else 0, dtype=torch.float64, device=call.device)
    pair_weights = torch.zeros(given.total_pairs, **wide)
    statistics = torch.empty(2, 0, **wide)
    with on_device_of(given.begin):
        launch = plan(call, FORWARD, splits=given.features != "outer")
        make_weights(call)
        if given.dice_training:
            call, statistics = _with_statistics(call, launch)
        result = LocalActivationResult(pooled, logsumexp, pair_weights, statistics)
        if not queries:
            return result
        split = launch.splits > 1
        results = Results(pooled, logsumexp, logsumexp, given.pair_begin, pair_weights)
        if split:
            parts = torch.empty(launch.splits, queries, unit.dim, **wide)
            top, total = (torch.empty(launch.splits, queries, **wide) for _ in range(2))
            results = Results(parts, top, total, given.pair_begin, pair_weights)
        for chunk in chunks(call):
            forward_kernel[(launch.programs,)](
                chunk.inputs,
                results,
                queries,
                chunk.first,
                chunk.last,
                launch.splits,
                given.scale,
                UNIT=call.unit,
                TILE=launch.tile,
                SOFTMAX=softmax,
                SPLIT=split,
                **launch.options,
            )
        if split:
            sizes, columns = (queries, unit.dim, launch.splits), triton.next_power_of_2(unit.dim)
            combine_kernel[(queries,)](*results[:3], pooled, logsumexp, *sizes, SOFTMAX=softmax, COLUMNS=columns)
        if softmax and given.pair_begin is not None:
            where = call.inputs.where
            normalize_kernel[(queries,)](where, given.pair_begin, logsumexp, pair_weights, queries, BLOCK=128)
    return result
