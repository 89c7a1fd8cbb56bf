"""`local_activation` in Triton, forward: tensors to launches."""

from __future__ import annotations

import torch

from din_kernels.backends.calls import LocalActivationCall, LocalActivationResult
from din_kernels.backends.triton import next_power_of_2, on_device_of
from din_kernels.backends.triton.launch import launch
from din_kernels.backends.triton.local_activation.arguments import Results
from din_kernels.backends.triton.local_activation.forward import combine_kernel, forward_kernel, normalize_kernel
from din_kernels.backends.triton.local_activation.inputs import Prepared, inverse_deviation, make_weights, prepare
from din_kernels.backends.triton.local_activation.memory import FORWARD
from din_kernels.backends.triton.local_activation.outer import chunks
from din_kernels.backends.triton.local_activation.plan import Launch, plan
from din_kernels.backends.triton.local_activation.statistics import statistics_kernel


def _moments(call: Prepared, tiles: Launch, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch mean and biased variance [H] of a hidden layer's z, in double; 0 and 1 where there is no pair."""
    width, unit = call.unit.widths[layer], call.unit
    counts, means, squares = [], [], []
    for chunk in chunks(call):
        count = torch.zeros(tiles.programs, dtype=torch.float32, device=call.device)
        mean, square = (count.new_zeros(tiles.programs, width) for _ in range(2))
        launch(
            statistics_kernel,
            (tiles.programs,),
            (
                chunk.inputs,
                count,
                mean,
                square,
                chunk.first,
                chunk.last,
            ),
            {"LAYER": layer, "UNIT": unit, "TILE": tiles.tile},
            tiles.options,
        )
        counts.append(count), means.append(mean), squares.append(square)
    counts, means, squares = (torch.cat(each).double() for each in (counts, means, squares))
    total = counts.sum()
    share = (counts / total.clamp(min=1)).unsqueeze(1)
    mean = (share * means).sum(0)
    var = (squares.sum(0) + (counts.unsqueeze(1) * (means - mean).square()).sum(0)) / total.clamp(min=1)
    return mean, torch.where(total > 0, var, 1.0)


def _with_statistics(call: Prepared, tiles: Launch) -> tuple[Prepared, torch.Tensor]:
    """The call with batch statistics among its parameters, layer by layer, since each needs those below; and the
    statistics [2, sum of hidden widths]: means, then biased variances."""
    widths = call.unit.widths[: call.unit.hidden]
    statistics = torch.empty(2, sum(widths), dtype=torch.float32, device=call.device)
    means, variances = (row.split(widths) for row in statistics)
    for layer in range(call.unit.hidden):
        mean, var = _moments(call, tiles, layer)
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
        tiles = plan(call, FORWARD, splits=given.features != "outer")
        make_weights(call)
        if given.dice_training:
            call, statistics = _with_statistics(call, tiles)
        result = LocalActivationResult(pooled, logsumexp, pair_weights, statistics)
        if not queries:
            return result
        split = tiles.splits > 1
        results = Results(pooled, logsumexp, logsumexp, given.pair_begin, pair_weights)
        if split:
            parts = torch.empty(tiles.splits, queries, unit.dim, **wide)
            top, total = (torch.empty(tiles.splits, queries, **wide) for _ in range(2))
            results = Results(parts, top, total, given.pair_begin, pair_weights)
        for chunk in chunks(call):
            launch(
                forward_kernel,
                (tiles.programs,),
                (
                    chunk.inputs,
                    results,
                    queries,
                    chunk.first,
                    chunk.last,
                    tiles.splits,
                    given.scale,
                ),
                {"UNIT": call.unit, "TILE": tiles.tile, "SOFTMAX": softmax, "SPLIT": split},
                tiles.options,
            )
        if split:
            sizes, columns = (queries, unit.dim, tiles.splits), next_power_of_2(unit.dim)
            launch(
                combine_kernel,
                (queries,),
                (
                    *results[:3],
                    pooled,
                    logsumexp,
                    *sizes,
                ),
                {"SOFTMAX": softmax, "COLUMNS": columns},
                {},
            )
        if softmax and given.pair_begin is not None:
            where = call.inputs.where
            launch(
                normalize_kernel,
                (queries,),
                (
                    where,
                    given.pair_begin,
                    logsumexp,
                    pair_weights,
                    queries,
                ),
                {"BLOCK": 128},
                {},
            )
    return result
