"""What the unit's kernels take, by name: tensors as NamedTuples, sizes and options as constexpr ones.

Numbers that change from batch to batch are arguments of their own: within a tuple Triton would compile a kernel anew
for those that are 1 or a multiple of 16. The shape of a tile is `memory.Shape`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from din_kernels.backends.triton.blocks import Spans

# --- tensors ----------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Rows [n, D], given as they are or by id."""

    tables: tuple[Tensor, ...]  # [V_k, D_k] each; without ids one table, the rows themselves
    ids: tuple[Tensor, ...]  # [n] each, one per table, or none


class Where(NamedTuple):
    """Which rows of the history belong to which candidate."""

    begin: Tensor  # [U] int64
    length: Tensor  # [U] int64
    row_index: Tensor | None  # [capacity] int64
    row_mask: Tensor | None  # [M] uint8; 0: the row counts in Dice's statistics and nowhere else
    query_to_user: Tensor | None  # [Q] int64


class Layers(NamedTuple):
    """The activation MLP, hidden layers and the output layer."""

    weights: tuple[Tensor, ...]  # [out, in] each
    biases: tuple[Tensor, ...]  # [out] each
    params: tuple[tuple[Tensor, ...], ...]  # per hidden layer, as activations.own_params takes them
    weight_k: Tensor | None  # [H1, D], for concat Wk - Wd; None for outer, whose A comes ready
    weight_qk: Tensor | None  # [H1, D]: Wp


class Inputs(NamedTuple):
    """What every pass over the pairs reads."""

    query: Source
    history: Source
    where: Where
    mlp: Layers
    term: Tensor  # [Q, H1] fp32, c_i, by term_kernel
    folded: Tensor | None  # outer: A [last - first, H1, D]


class Results(NamedTuple):
    """What forward_kernel writes."""

    pooled: Tensor  # [Q, D]; where histories are split, parts [splits, Q, D] fp32
    top: Tensor  # softmax, split: highest score, [splits, Q] fp32
    total: Tensor  # softmax, split: sum of exp(score - highest), [splits, Q] fp32; whole: logsumexp [Q] float64
    pair_begin: Tensor | None  # [Q]; None: the weights are not returned
    pair_weights: Tensor  # [total_pairs] fp32; under softmax the scores yet


class Given(NamedTuple):
    """What backward_kernel starts from."""

    grad_pooled: Tensor  # [Q, D]
    grad_pair_weights: Tensor | None  # [total_pairs] fp32; None: the weights were not returned
    pooled: Tensor  # [Q, D]
    logsumexp: Tensor  # [Q] float64, under softmax
    pair_begin: Tensor  # [Q]
    pair_weights: Tensor  # [total_pairs] fp32


class Grads(NamedTuple):
    """What backward_kernel writes."""

    query: Tensor  # [splits, Q, D] fp32: the part through A
    term: Tensor  # [splits, Q, H1] fp32: dc
    folded: Tensor | None  # outer: dA [last - first, H1, D] fp32
    history: tuple[Tensor, ...]  # per table [M, D_k], or none; fp32 where candidates share rows
    parts: Tensor  # [programs, size] fp32, zeros: gradients of the weights, laid out as parts.Layout says


class Order(NamedTuple):
    """Candidates user by user, so that those of one user are in one program, in a fixed order."""

    candidates: Tensor | None  # [last - first]
    bounds: Tensor | None  # [programs + 1]; program p takes bounds[p] .. bounds[p + 1]


# --- constants --------------------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """Where each span of D lies in the tables."""

    table: tuple[int, ...]
    column: tuple[int, ...]  # its first
    width: tuple[int, ...]  # D_k of the table


class Unit(NamedTuple):
    """Sizes and options of the unit, the same for every kernel of a call."""

    dim: int  # D
    d_spans: Spans  # of D; they cross no border of a table
    query_places: Places
    history_places: Places
    widths: tuple[int, ...]  # of the hidden layers, without one that of the output layer
    layers: tuple[Spans, ...]  # of these widths
    hidden: int  # hidden layers
    steps: tuple[tuple[int, ...], ...]  # per hidden layer and parameter 1, or 0 where it has one entry for all channels
    stride_k: int  # of weight_k; 0 for outer
    stride_qk: int
    activation: str
    fast: bool  # tanh.approx


class PartOfLayer(NamedTuple):
    """Where a program's part holds the sums of a hidden layer."""

    weight: int  # [out, in]; nothing for the first
    bias: int  # [out]; nothing for the first
    sums: int  # [SUMS, out] of the activation


class Layout(NamedTuple):
    """Where a program's part of the weight gradients holds what, see parts.py."""

    size: int
    weight_k: int  # [H1, D]; nothing for outer
    weight_qk: int  # [H1, D]; nothing for outer
    weight_last: int  # [1, H]
    bias_last: int  # [1]
    layers: tuple[PartOfLayer, ...]


class Pass(NamedTuple):
    """What a launch of backward_kernel makes."""

    softmax: bool
    stop: int  # -1: everything; else the hidden layer whose Dice sums alone are wanted
    sums: int  # of the activation
    parts: Layout
    shared: str  # rows that several candidates have: "none"; "atomic"; "ordered": all in one program, one by one
