"""Gradients that are sums over the candidates, and the last step: programs' parts added up into the op's results.

dq_i += Wq'^T dc_i    dWq' = sum_i dc_i q_i^T    db1' = sum_i dc_i
"""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from din_kernels.backends.triton import cdiv
from din_kernels.backends.triton.arithmetic import add_outer, dot
from din_kernels.backends.triton.blocks import load_block, load_rows, narrow, store_matrix, zero_matrix
from din_kernels.backends.triton.local_activation.tile import load_source


@triton.jit
def _sum_of_splits(pointer, stride, row, inside, queries, splits, SPANS: tl.constexpr):
    """Rows of [splits, Q, stride], added up over the splits in their order."""
    total = load_rows(pointer, stride, row, inside, SPANS)
    for split in range(1, splits):
        more = load_rows(pointer, stride, tl.cast(split, tl.int64) * queries + row, inside, SPANS)
        sums = ()
        for o in tl.static_range(len(total)):
            sums = sums + (total[o] + more[o],)
        total = sums
    return total


@triton.jit(do_not_specialize=["queries", "splits"])
def query_gradients_kernel(
    inputs,  # arguments.Inputs
    query,  # [splits, Q, D] fp32: the part through A
    term,  # [splits, Q, H1] fp32: dc
    grads,  # per table [Q, D_k], or none
    parts,  # [programs, H1 * D + H1] fp32: dWq', db1'
    queries,  # Q
    splits,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq, and a part of dWq' and db1' per program."""
    D_SPANS: tl.constexpr = UNIT.d_spans
    SPANS: tl.constexpr = UNIT.layers[0]
    QUERY_PLACES: tl.constexpr = UNIT.query_places
    PLACES: tl.constexpr = UNIT.places
    WIDTH: tl.constexpr = UNIT.widths[0]
    SIZE: tl.constexpr = WIDTH * UNIT.dim
    weight_q = zero_matrix(D_SPANS, SPANS)
    bias = ()
    for o in tl.static_range(len(SPANS.width)):
        bias = bias + (tl.zeros([tl.constexpr(SPANS.width[o])], tl.float32),)
    for block in range(tl.program_id(0), tl.cdiv(queries, BLOCK), tl.num_programs(0)):
        row = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = row < queries
        dc = _sum_of_splits(term, WIDTH, row, inside, queries, splits, SPANS)
        rows = load_source(inputs.query, row, inside, D_SPANS, QUERY_PLACES)
        q = ()
        for b in tl.static_range(len(rows)):
            q = q + (rows[b].to(tl.float32),)
        weight_q = add_outer(weight_q, q, dc, PRECISION)
        sums = ()
        for o in tl.static_range(len(dc)):
            sums = sums + (bias[o] + tl.sum(dc[o], 0),)
        bias = sums
        if len(grads) > 0:
            through_a = _sum_of_splits(query, UNIT.dim, row, inside, queries, splits, D_SPANS)
            for b in tl.static_range(len(through_a)):
                total = through_a[b]
                # Block by block: the whole weight, in fp32 at D = 256, is more than a chip's 99 KB of shared memory.
                for o in tl.static_range(len(dc)):
                    weight = load_block(
                        inputs.mlp.matrices + PLACES.weight_q, PLACES.strides[0], 0, D_SPANS, b, SPANS, o
                    )
                    total = dot(dc[o], tl.trans(weight.to(tl.float32)), total, PRECISION)
                pointer = grads[QUERY_PLACES.table[b]]
                column = tl.arange(0, D_SPANS.width[b])
                at = row[:, None] * QUERY_PLACES.width[b] + (QUERY_PLACES.column[b] + column)[None, :]
                mask = inside[:, None] & (column < D_SPANS.valid[b])[None, :]
                tl.store(pointer + at, narrow(total, pointer.dtype.element_ty), mask=mask)
    part = parts + tl.program_id(0).to(tl.int64) * (SIZE + WIDTH)
    store_matrix(part, UNIT.dim, weight_q, D_SPANS, SPANS)
    for o in tl.static_range(len(bias)):
        column = tl.arange(0, SPANS.width[o])
        tl.store(part + SIZE + SPANS.start[o] + column, bias[o], mask=column < SPANS.valid[o])


# --- the end ----------------------------------------------------------------------------------------------------------


@triton.jit
def _total(parts, programs, size, at, inside, EACH: tl.constexpr):
    """Entries `at` [BLOCK] of parts [programs, size], added up over the programs in a fixed order."""
    total = tl.zeros([at.shape[0]], tl.float32)
    for first in range(0, programs, EACH):
        program = (first + tl.arange(0, EACH)).to(tl.int64)
        mask = (program < programs)[:, None] & inside[None, :]
        total += tl.sum(tl.load(parts + program[:, None] * size + at[None, :], mask=mask, other=0.0), 0)
    return total


@triton.jit
def _put(pointer, at, value, inside):
    tl.store(pointer + at, narrow(value, pointer.dtype.element_ty), mask=inside)


@triton.jit
def _finish_upper(
    parts,
    weight,  # [out, in]: the gradient
    bias,  # [out]
    programs,
    block,  # of this layer's, or beyond
    LAYER: tl.constexpr,
    UNIT: tl.constexpr,
    TO: tl.constexpr,
    INTO: tl.constexpr,
    GAIN: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    EACH: tl.constexpr,
):
    """A block of a layer above the first; the number of the block among those of the layers above."""
    BELOW: tl.constexpr = UNIT.widths[LAYER - 1]
    OUT: tl.constexpr = UNIT.widths[LAYER] if LAYER < UNIT.hidden else 1
    FACTOR: tl.constexpr = INTO if LAYER < UNIT.hidden else 1.0
    WEIGHT_AT: tl.constexpr = TO.weights[LAYER - 1] if LAYER < UNIT.hidden else TO.weight_last
    BIAS_AT: tl.constexpr = TO.biases[LAYER - 1] if LAYER < UNIT.hidden else TO.bias_last
    WEIGHTS: tl.constexpr = (OUT * BELOW + BLOCK - 1) // BLOCK
    BIASES: tl.constexpr = (OUT + BLOCK - 1) // BLOCK
    if (block >= 0) & (block < WEIGHTS):
        own = block * BLOCK + tl.arange(0, BLOCK)
        inside = own < OUT * BELOW
        value = GAIN * _total(parts, programs, TO.size, WEIGHT_AT + own, inside, EACH)
        if SHIFT != 0:
            value += SHIFT * _total(parts, programs, TO.size, BIAS_AT + own // BELOW, inside, EACH)
        _put(weight, own, FACTOR * value, inside)
    if (block >= WEIGHTS) & (block < WEIGHTS + BIASES):
        own = (block - WEIGHTS) * BLOCK + tl.arange(0, BLOCK)
        inside = own < OUT
        _put(bias, own, FACTOR * _total(parts, programs, TO.size, BIAS_AT + own, inside, EACH), inside)
    return block - WEIGHTS - BIASES


@triton.jit(do_not_specialize=["first_programs", "query_programs", "upper_programs"])
def finish_kernel(
    first_parts,  # [first_programs, 2 * H1 * D]; nothing for outer
    query_parts,  # [query_programs, H1 * D + H1]
    upper_parts,  # [upper_programs, TO.size]
    weights,  # the op's gradients, [out, in] each; for outer the first is dWq [H1, D]
    biases,  # [out] each
    first_programs,
    query_programs,
    upper_programs,
    UNIT: tl.constexpr,
    TO: tl.constexpr,  # arguments.UpperPlaces
    FEATURES: tl.constexpr,
    INTO: tl.constexpr,  # of weights.Form, as the next
    GAIN: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    EACH: tl.constexpr,
):
    """A block of one result a program, in the order of weights.py's formulas."""
    DIM: tl.constexpr = UNIT.dim
    WIDTH: tl.constexpr = UNIT.widths[0]
    HIDDEN: tl.constexpr = UNIT.hidden
    SIZE: tl.constexpr = WIDTH * DIM
    FACTORS: tl.constexpr = 1 if FEATURES == "outer" else 4 if FEATURES == "concat" else 3
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # The first layer.
    own = entry
    inside = own < SIZE
    if tl.program_id(0) * BLOCK < SIZE:
        by_q = INTO * _total(query_parts, query_programs, SIZE + WIDTH, own, inside, EACH)
        at = own // DIM * (FACTORS * DIM) + own % DIM
        _put(weights[0], at, by_q, inside)
        if FEATURES != "outer":
            by_k = INTO * _total(first_parts, first_programs, 2 * SIZE, own, inside, EACH)
            by_qk = INTO * _total(first_parts, first_programs, 2 * SIZE, SIZE + own, inside, EACH)
            _put(weights[0], at + DIM, by_k, inside)
            if FEATURES == "concat":
                _put(weights[0], at + 2 * DIM, by_q - by_k, inside)
            _put(weights[0], at + (FACTORS - 1) * DIM, by_qk, inside)
    block = tl.program_id(0) - tl.cdiv(SIZE, BLOCK)
    own = block * BLOCK + tl.arange(0, BLOCK)
    inside = (own >= 0) & (own < WIDTH)
    if (block >= 0) & (block < tl.cdiv(WIDTH, BLOCK)):
        _put(biases[0], own, INTO * _total(query_parts, query_programs, SIZE + WIDTH, SIZE + own, inside, EACH), inside)
    block -= tl.cdiv(WIDTH, BLOCK)
    for layer in tl.static_range(1, HIDDEN + 1):
        block = _finish_upper(
            upper_parts,
            weights[layer],
            biases[layer],
            upper_programs,
            block,
            layer,
            UNIT,
            TO,
            INTO,
            GAIN,
            SHIFT,
            BLOCK,
            EACH,
        )


@functools.lru_cache(maxsize=256)
def finish_blocks(dim: int, widths: tuple[int, ...], hidden: int, block: int) -> int:
    """Programs of finish_kernel."""
    sizes = [widths[0] * dim, widths[0]]
    for layer in range(1, hidden + 1):
        out = widths[layer] if layer < hidden else 1
        sizes += [out * widths[layer - 1], out]
    return sum(cdiv(size, block) for size in sizes)
