"""`local_activation` in Triton: tensors to launches."""

from __future__ import annotations

import functools

import torch
import triton

from din_kernels.backends import Request
from din_kernels.backends.triton import chips, on_device_of, refuses_tensors
from din_kernels.backends.triton.local_activation.backward import backward_kernel
from din_kernels.backends.triton.local_activation.forward import (
    combine_kernel,
    forward_kernel,
    normalize_kernel,
    statistics_kernel,
    term_kernel,
)
from din_kernels.backends.triton.local_activation.memory import TERM_ROWS
from din_kernels.backends.triton.local_activation.plan import (
    CHUNK_BYTES,
    Call,
    Tiles,
    inverse_deviation,
    make_call,
    refuses_sizes,
    steps,
    tiles,
)


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    options = request.options
    if options["dice_training"] == "some":
        return "either all or none of the Dice layers must take batch statistics, got some"
    sizes = (options[name] for name in ("query_widths", "row_widths", "hidden"))
    return refuses_tensors(request) or refuses_sizes(*sizes, request.dtype, request.device, options["backward"])


def _query_term(call: Call) -> torch.Tensor:
    """c [Q, H1] fp32."""
    shared = call.constants
    term = torch.empty(call.queries, shared["WIDTHS"][0], dtype=torch.float32, device=call.device)
    term_kernel[(triton.cdiv(call.queries, TERM_ROWS),)](
        call.source[0], call.source[1], call.through_query, call.biases[0], term, call.queries, BLOCK=TERM_ROWS,
        D_SPANS=shared["D_SPANS"], SOURCES=shared["Q_SOURCES"], SPANS=shared["LAYERS"][0], WIDTH=shared["WIDTHS"][0],
        STRIDE=call.through_query.stride(0), PRECISION=chips.dot_precision(call.dtype), num_warps=8,
    )  # fmt: skip
    return term


def query_rows(call: Call, first: int, last: int) -> torch.Tensor:
    """Rows [last - first, D] of the query."""
    tables, ids = call.source[:2]
    if not ids:
        return tables[0][first:last]
    return torch.cat([table[each[first:last]] for table, each in zip(tables, ids, strict=True)], 1)


def chunks(call: Call):
    """For outer (first, last, A of these candidates [last - first, H1, D]); else one chunk and no A.

    A_i = Wk + sum_j q_ij Wo[:, j, :] is one product of [chunk, D] with [D, H1 * D], never for all candidates at once.
    """
    if call.features != "outer":
        yield 0, call.queries, None
        return
    dim, width = call.constants["DIM"], call.constants["WIDTHS"][0]
    weight = call.weights[0].to(call.dtype)
    by_query = outer_weight(weight, dim)
    key = weight[:, dim : 2 * dim].reshape(-1)
    chunk = max(1, CHUNK_BYTES // (width * dim * call.dtype.itemsize))
    for first in range(0, max(call.queries, 1), chunk):
        last = min(first + chunk, call.queries)
        folded = torch.addmm(key, query_rows(call, first, last), by_query)
        yield first, last, folded.view(last - first, width, dim)


def outer_weight(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Wo as [D (of q), H1 * D (of k)]."""
    return weight[:, 2 * dim :].view(-1, dim, dim).transpose(0, 1).reshape(dim, -1)


def arguments(call: Call) -> tuple:
    """(weights, biases, params, first) as kernels take them."""
    return tuple(call.weights), tuple(call.biases), tuple(map(tuple, call.params)), call.first


def _statistics(call: Call, shape: Tiles, term: torch.Tensor) -> torch.Tensor:
    """Batch means, then biased variances, [2, sum of hidden widths]; joins them to the parameters of each layer."""
    widths = [bias.shape[0] for bias in call.biases[:-1]]
    statistics = torch.empty(2, sum(widths), dtype=torch.float32, device=call.device)
    means, variances = (row.split(widths) for row in statistics)
    for layer, width in enumerate(widths):
        counts, parts, squares = [], [], []
        for first, last, folded in chunks(call):
            count = torch.zeros(shape.programs, dtype=torch.float32, device=call.device)
            mean, square = (count.new_zeros(shape.programs, width) for _ in range(2))
            statistics_kernel[(shape.programs,)](
                call.source, call.where, arguments(call), term, folded, count, mean, square, first, last, LAYER=layer,
                **call.constants, **shape.constants,
            )  # fmt: skip
            counts.append(count), parts.append(mean), squares.append(square)
        counts, parts, squares = (torch.cat(each).double() for each in (counts, parts, squares))
        total = counts.sum()
        share = (counts / total.clamp(min=1)).unsqueeze(1)
        mean = (share * parts).sum(0)
        var = (squares.sum(0) + (counts.unsqueeze(1) * (parts - mean).square()).sum(0)) / total.clamp(min=1)
        means[layer].copy_(mean)
        variances[layer].copy_(torch.where(total > 0, var, 1.0))
        call.params[layer].extend((means[layer], inverse_deviation(variances[layer], call.eps[layer])))
        call.constants["STEPS"] = steps(call.params)
    return statistics


def forward(
    query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user, pair_begin,
    total_pairs, weights, biases, params, eps, dice_training, sparse_grad, features, activation, normalize, scale,
):  # fmt: skip
    """Kernel calls of the op's forward: pooled [Q, D], logsumexp [Q] or [0], pair_weights [total_pairs], statistics."""
    call = make_call(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user,
                     weights, biases, params, eps, features, activation)  # fmt: skip
    queries, dim, softmax = call.queries, call.constants["DIM"], normalize == "softmax"
    wide = {"dtype": torch.float32, "device": call.device}
    pooled = torch.empty(queries, dim, dtype=call.dtype, device=call.device)
    logsumexp = torch.empty(queries if softmax else 0, **wide)
    pair_weights = torch.zeros(total_pairs, **wide)
    with on_device_of(begin):
        shape = tiles(call, "", splits=features != "outer")
        term = _query_term(call) if queries else pooled
        statistics = _statistics(call, shape, term) if dice_training else torch.empty(2, 0, **wide)
        if not queries:
            return pooled, logsumexp, pair_weights, statistics
        split = shape.splits > 1
        parts, top, total = pooled, logsumexp, logsumexp
        if split:
            parts = torch.empty(shape.splits, queries, dim, **wide)
            top, total = (torch.empty(shape.splits, queries, **wide) for _ in range(2))
        for first, last, folded in chunks(call):
            forward_kernel[(shape.programs,)](
                call.source, call.where, arguments(call), term, folded, parts, top, total, pair_begin, pair_weights,
                queries, first, last, shape.splits, scale, HIDDEN=len(weights) - 1, SOFTMAX=softmax, SPLIT=split,
                **call.constants, **shape.constants,
            )  # fmt: skip
        if split:
            combine_kernel[(queries,)](parts, top, total, pooled, logsumexp, queries, dim, shape.splits,
                                       SOFTMAX=softmax, COLUMNS=triton.next_power_of_2(dim))  # fmt: skip
        if softmax and pair_begin is not None:
            normalize_kernel[(queries,)](call.where, pair_begin, logsumexp, pair_weights, queries, BLOCK=128)
    return pooled, logsumexp, pair_weights, statistics


class Parts:
    """Where a program's part of the weight gradients holds what; `parts` [programs, size] fp32. Everything begins at a
    multiple of 16 bytes, so that it is stored four at a time."""

    def __init__(self, dim: int, widths: tuple[int, ...], hidden: int, outer: bool, sums: int):
        self.size = 0

        def take(count):
            start = self.size
            self.size += triton.cdiv(count, 4) * 4
            return start

        first = 0 if outer else widths[0] * dim
        self.first = (take(first), take(first), take(widths[-1]), take(1))
        self.layers = tuple(
            (take(widths[at] * widths[at - 1] if at else 0), take(widths[at] if at else 0), take(sums * widths[at]))
            for at in range(hidden)
        )


_parts = functools.lru_cache(maxsize=256)(Parts)


def _user_pairs(call: Call) -> torch.Tensor:
    """Number of valid pairs, 0-D, at least 1."""
    _, length, _, _, query_to_user = call.where
    return (length if query_to_user is None else length[query_to_user]).sum().clamp(min=1)


def backward(
    grad_pooled, grad_pair_weights, query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask,
    query_to_user, pair_begin, total_pairs, weights, biases, params, eps, dice_training, sparse_grad, features,
    activation, normalize, scale, pooled, logsumexp, pair_weights, statistics, need_query, need_rows,
):  # fmt: skip
    """Kernel calls of the op's backward: gradients of query and rows per table (or [0] where not needed), weights,
    biases, params."""
    call = make_call(query_tables, query_ids, row_tables, row_ids, begin, length, row_index, row_mask, query_to_user,
                     weights, biases, params, eps, features, activation)  # fmt: skip
    shared, queries, softmax = call.constants, call.queries, normalize == "softmax"
    dim, widths, hidden = shared["DIM"], shared["WIDTHS"], len(call.params)
    wide = {"dtype": torch.float32, "device": call.device}
    grad_pooled = grad_pooled.contiguous()
    grad_pair_weights = grad_pair_weights.contiguous() if grad_pair_weights is not None and total_pairs else None
    pair_begin = begin if pair_begin is None else pair_begin  # a pointer that is not followed without gradients
    sums = {"prelu": 1, "dice": 3}.get(activation, 0)
    at = _parts(dim, widths, hidden, features == "outer", sums)
    # Candidates that share a history add to the same rows: atomically, or one by one in a fixed order when asked for.
    shared_rows = "none" if query_to_user is None or not need_rows else "atomic"
    if shared_rows == "atomic" and torch.are_deterministic_algorithms_enabled():
        shared_rows = "ordered"
    rows_dtype = call.dtype if shared_rows == "none" else torch.float32
    grad_rows = tuple(
        torch.zeros(call.rows, table.shape[1], dtype=rows_dtype, device=call.device)
        if need_rows
        else table.new_empty(0)
        for table in call.source[2]
    )
    ordered = shared_rows == "ordered"
    shape = tiles(call, "_backward", splits=features != "outer" and not ordered, single=ordered)
    grad_query = torch.empty(shape.splits, queries, dim, **wide)
    grad_term = torch.empty(shape.splits, queries, widths[0], **wide)
    for layer in range(hidden) if dice_training else ():
        mean, var = (each.split(widths)[layer] for each in statistics)
        call.params[layer].extend((mean, inverse_deviation(var, call.eps[layer])))
    with on_device_of(begin):
        term = _query_term(call) if queries else grad_query
        first = _FirstLayerOfOuter(call) if features == "outer" else None

        def launch(stop: int) -> torch.Tensor:
            total = []
            shared["STEPS"] = steps(call.params)
            for begins, ends, folded in chunks(call) if queries else ():
                each = torch.zeros(shape.programs, at.size, **wide)
                order, bounds = _by_user(query_to_user, begins, ends, shape.programs) if ordered else (None, None)
                grad_folded = None
                if folded is not None and stop < 0:
                    grad_folded = torch.empty(folded.shape, **wide)
                backward_kernel[(shape.programs,)](
                    call.source, call.where, arguments(call), term, folded, grad_pooled, pooled, logsumexp, pair_begin,
                    pair_weights, grad_pair_weights, grad_query, grad_term, grad_folded,
                    grad_rows if need_rows and stop < 0 else (), each, order, bounds, queries, begins, ends,
                    shape.splits, scale,
                    HIDDEN=hidden, SOFTMAX=softmax, STOP=stop, SUMS=sums, SIZE=at.size, AT=at.first,
                    AT_LAYERS=at.layers, SHARED=shared_rows, **shared, **shape.constants,
                )  # fmt: skip
                total.append(each.sum(0))
                if grad_folded is not None:
                    first.add(begins, ends, grad_folded, grad_query)
            return sum(total[1:], total[0]) if total else torch.zeros(at.size, **wide)

        # Dice's batch statistics: sums of g and g zhat over all pairs must be there before a layer's dz, from the top.
        pairs = _user_pairs(call) if dice_training else None
        for layer in reversed(range(hidden)) if dice_training else ():
            found = launch(layer)[at.layers[layer][2] :][: sums * widths[layer]].view(sums, -1) / pairs
            call.params[layer].extend((found[1], found[2]))
        parts = launch(-1)
    grad_query, grad_term = (each[0] if shape.splits == 1 else each.sum(0) for each in (grad_query, grad_term))
    return _gradients(call, at, parts, grad_query, grad_term, first, params, sums, dice_training, grad_rows,
                      need_query)  # fmt: skip


def _by_user(query_to_user: torch.Tensor, first: int, last: int, programs: int):
    """Candidates first .. last by user, and where each program's begin [programs + 1]: no user is in two of them."""
    users, order = torch.sort(query_to_user[first:last], stable=True)
    even = torch.arange(programs, device=users.device) * (last - first) // programs
    bounds = torch.searchsorted(users, users[even])
    return order, torch.cat([bounds, torch.full((1,), last - first, device=users.device)])


class _FirstLayerOfOuter:
    """Gradients through A = Wk + sum_j q_j Wo[:, j, :], chunk by chunk: two products of the size of A's."""

    def __init__(self, call: Call):
        dim, width = call.constants["DIM"], call.constants["WIDTHS"][0]
        self.call = call
        self.by_query = outer_weight(call.weights[0].float(), dim)
        self.key = torch.zeros(width, dim, dtype=torch.float32, device=call.device)
        self.outer = torch.zeros_like(self.by_query)

    def add(self, first: int, last: int, grad: torch.Tensor, grad_query: torch.Tensor) -> None:
        flat = grad.view(last - first, -1)
        self.key += grad.sum(0)
        self.outer += query_rows(self.call, first, last).float().T @ flat
        grad_query[0, first:last] += flat @ self.by_query.T


def _gradients(call: Call, at: Parts, parts, grad_query, grad_term, first, params, sums, dice_training, grad_rows,
               need_query):  # fmt: skip
    """The op's outputs from what the kernels left, in the dtypes of the inputs; each a tensor of its own, since
    torch.compile takes them to share no memory and to begin at multiples of 16 bytes."""
    dim, widths, hidden = call.constants["DIM"], call.constants["WIDTHS"], len(call.params)

    def part(start, *sizes):
        count = 1
        for size in sizes:
            count *= size
        return parts[start : start + count].view(sizes)

    d_query = grad_term.T @ query_rows(call, 0, call.queries).float()
    if call.features == "outer":
        outer = first.outer.view(dim, widths[0], dim).transpose(0, 1).reshape(widths[0], -1)
        grad_first = torch.cat([d_query, first.key, outer], 1)
    else:
        d_key, d_product = (part(start, widths[0], dim) for start in at.first[:2])
        middle = [d_query - d_key] if call.features == "concat" else []
        grad_first = torch.cat([d_query, d_key, *middle, d_product], 1)
    grad_weights, grad_biases, grad_params = [grad_first], [grad_term.sum(0)], []
    for layer in range(hidden):
        weight_at, bias_at, sums_at = at.layers[layer]
        if layer:
            grad_weights.append(part(weight_at, widths[layer], widths[layer - 1]))
            grad_biases.append(part(bias_at, widths[layer]))
        grad_params += _param_gradients(call, layer, part(sums_at, sums, widths[layer]), dice_training)
    if hidden:
        grad_weights.append(part(at.first[2], 1, widths[-1]))
        grad_biases.append(part(at.first[3], 1))
    tables = [table.shape[1] for table in call.source[0]]
    if need_query:
        grad_query = grad_query.addmm(grad_term, call.through_query.float())
    return (
        [g.to(call.dtype).contiguous() if need_query else g.new_empty(0, dtype=call.dtype)
         for g in grad_query.split(tables, 1)],
        [g.to(call.dtype) for g in grad_rows],
        *([g.to(own.dtype, copy=True) for g, own in zip(grads, group, strict=True)]
          for grads, group in ((grad_weights, call.weights), (grad_biases, call.biases), (grad_params, params))),
    )  # fmt: skip


def _param_gradients(call: Call, layer: int, sums: torch.Tensor, dice_training: bool) -> list[torch.Tensor]:
    """From the sums [n, H] of activations.gradient: dslope; or dalpha and, of given statistics, dmean and dvar."""
    params = call.params[layer][: 1 if dice_training else None]
    found = list(sums[: len(params)])
    if len(params) == 3:
        inverse = params[2]
        found[1:] = [-sums[1] * inverse, -0.5 * sums[2] * inverse.square()]
    return [g if p.numel() > 1 else g.sum(0, keepdim=True) for g, p in zip(found, params, strict=True)]
