"""`local_activation` in Triton: tensors to launches."""

from __future__ import annotations

import torch
import triton

from din_kernels.backends.calls import (
    LocalActivationCall,
    LocalActivationGradients,
    LocalActivationGrads,
    LocalActivationResult,
)
from din_kernels.backends.triton import chips, on_device_of
from din_kernels.backends.triton.activations import SUMS
from din_kernels.backends.triton.local_activation.arguments import Given, Grads, Order, Pass, Results
from din_kernels.backends.triton.local_activation.backward import backward_kernel
from din_kernels.backends.triton.local_activation.forward import (
    combine_kernel,
    forward_kernel,
    normalize_kernel,
    term_kernel,
)
from din_kernels.backends.triton.local_activation.inputs import Prepared, inverse_deviation, prepare
from din_kernels.backends.triton.local_activation.memory import TERM_ROWS
from din_kernels.backends.triton.local_activation.outer import Chunk, FirstLayerOfOuter, chunks
from din_kernels.backends.triton.local_activation.parts import Gradients, layout_of
from din_kernels.backends.triton.local_activation.plan import Launch, plan
from din_kernels.backends.triton.local_activation.statistics import statistics_kernel


def _make_term(call: Prepared) -> None:
    """Makes c."""
    unit = call.unit
    if call.queries:
        term_kernel[(triton.cdiv(call.queries, TERM_ROWS),)](
            call.inputs.query,
            call.weight_q,
            call.inputs.mlp.biases[0],
            call.inputs.term,
            call.queries,
            BLOCK=TERM_ROWS,
            D_SPANS=unit.d_spans,
            PLACES=unit.query_places,
            SPANS=unit.layers[0],
            WIDTH=unit.widths[0],
            STRIDE=call.weight_q.stride(0),
            PRECISION=chips.dot_precision(call.dtype),
            num_warps=8,
        )


# --- forward ----------------------------------------------------------------------------------------------------------


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
        launch = plan(call, backward=False, splits=given.features != "outer")
        _make_term(call)
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


# --- backward ---------------------------------------------------------------------------------------------------------


def _by_user(query_to_user: torch.Tensor, chunk: Chunk, programs: int) -> Order:
    """A chunk's candidates by user, and where each program begins: no user is in two of them."""
    first, last = chunk.first, chunk.last
    users, order = torch.sort(query_to_user[first:last], stable=True)
    even = torch.arange(programs, device=users.device) * (last - first) // programs
    bounds = torch.searchsorted(users, users[even])
    return Order(order, torch.cat([bounds, torch.full((1,), last - first, device=users.device)]))


def _shared(given: LocalActivationCall, need_history: bool) -> str:
    """How candidates that share a history add to the same rows: atomically, or one by one in a fixed order when asked
    for."""
    if given.query_to_user is None or not need_history:
        return "none"
    return "ordered" if torch.are_deterministic_algorithms_enabled() else "atomic"


class _Backward:
    """The launches of one backward and what they write."""

    def __init__(self, given: LocalActivationCall, saved: LocalActivationResult, grads: LocalActivationGrads):
        call = self.call = prepare(given)
        unit = call.unit
        self.shared = _shared(given, grads.need_history)
        ordered, outer = self.shared == "ordered", given.features == "outer"
        self.launch_of = plan(call, backward=True, splits=not outer and not ordered, single=ordered)
        self.sums = SUMS.get(given.activation, 0)
        self.layout = layout_of(unit.dim, unit.widths, unit.hidden, outer, self.sums)
        weights = grads.pair_weights if given.total_pairs else None
        self.given = Given(
            grad_pooled=grads.pooled.contiguous(),
            grad_pair_weights=None if weights is None else weights.contiguous(),
            pooled=saved.pooled,
            logsumexp=saved.logsumexp,
            # Without gradients of the weights a pointer that is not followed.
            pair_begin=given.begin if given.pair_begin is None else given.pair_begin,
            pair_weights=saved.pair_weights,
        )
        self.wide = {"dtype": torch.float32, "device": call.device}
        rows_dtype = call.dtype if self.shared == "none" else torch.float32
        self.grad_history = tuple(
            torch.zeros(call.rows, table.shape[1], dtype=rows_dtype, device=call.device)
            if grads.need_history
            else table.new_empty(0)
            for table in call.inputs.history.tables
        )
        self.need_history = grads.need_history
        self.grad_query = torch.empty(self.launch_of.splits, call.queries, unit.dim, **self.wide)
        self.grad_term = torch.empty(self.launch_of.splits, call.queries, unit.widths[0], **self.wide)
        self.outer = FirstLayerOfOuter(call) if outer else None

    def launch(self, stop: int) -> Gradients:
        """Everything with stop = -1, else the sums of hidden layer `stop`'s Dice; added up over the programs."""
        call, launch, layout = self.call, self.launch_of, self.layout
        whole, total = stop < 0, []
        made = Pass(call.given.normalize == "softmax", stop, self.sums, layout, self.shared)
        for chunk in chunks(call) if call.queries else ():
            parts = torch.zeros(launch.programs, layout.size, **self.wide)
            order = Order(None, None)
            if self.shared == "ordered":
                order = _by_user(call.given.query_to_user, chunk, launch.programs)
            folded, grad_folded = chunk.inputs.folded, None
            if folded is not None and whole:
                grad_folded = torch.empty(folded.shape, **self.wide)
            grad_history = self.grad_history if self.need_history and whole else ()
            backward_kernel[(launch.programs,)](
                chunk.inputs,
                self.given,
                Grads(self.grad_query, self.grad_term, grad_folded, grad_history, parts),
                order,
                call.queries,
                chunk.first,
                chunk.last,
                launch.splits,
                call.given.scale,
                UNIT=call.unit,
                TILE=launch.tile,
                PASS=made,
                **launch.options,
            )
            total.append(parts.sum(0))
            if grad_folded is not None:
                self.outer.add(chunk, grad_folded, self.grad_query)
        part = sum(total[1:], total[0]) if total else torch.zeros(layout.size, **self.wide)
        return Gradients(call, layout, self.sums, part)

    def through_statistics(self, statistics: torch.Tensor) -> None:
        """Batch statistics of Dice, and from the last layer down the averages of g and g zhat over all pairs, which
        must be there before a layer's dz."""
        unit, where = self.call.unit, self.call.inputs.where
        widths = unit.widths[: unit.hidden]
        for layer in range(unit.hidden):
            mean, var = (each.split(widths)[layer] for each in statistics)
            self.call = self.call.with_params(layer, mean, inverse_deviation(var, self.call.given.eps[layer]))
        user = where.query_to_user
        pairs = (where.length if user is None else where.length[user]).sum().clamp(min=1)
        for layer in reversed(range(unit.hidden)):
            averages = self.launch(layer).sums_of(layer) / pairs
            self.call = self.call.with_params(layer, averages[1], averages[2])


def backward(
    given: LocalActivationCall, saved: LocalActivationResult, grads: LocalActivationGrads
) -> LocalActivationGradients:
    """Kernel calls of the op's backward."""
    made = _Backward(given, saved, grads)
    with on_device_of(given.begin):
        _make_term(made.call)
        if given.dice_training:
            made.through_statistics(saved.statistics)
        gradients = made.launch(-1)
    grad_query, grad_term = (
        each[0] if each.shape[0] == 1 else each.sum(0) for each in (made.grad_query, made.grad_term)
    )
    return gradients.all(grads, grad_query, grad_term, made.grad_history, made.outer)
