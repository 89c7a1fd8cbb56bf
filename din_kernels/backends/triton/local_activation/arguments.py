"""What the unit's kernels take, by name: tensors as NamedTuples, sizes and options as constexpr ones.

Numbers that change from batch to batch are arguments of their own: within a tuple Triton would compile a kernel anew
for those that are 1 or a multiple of 16. The shape of a tile is `memory.Shape`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from din_kernels.backends.triton.blocks import Spans
from din_kernels.backends.triton.local_activation.weights import WeightPlaces

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
    place: Tensor | None  # [Q] int64, in a backward: where the pairs of each candidate begin, one behind the other


class Layers(NamedTuple):
    """The activation MLP as weights.prepare_kernel leaves it; UNIT.places says where what is."""

    matrices: Tensor  # in the dtype of the rows
    vectors: Tensor  # fp32
    params: tuple[tuple[Tensor, ...], ...]  # per hidden layer, as activations.own_params takes them


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


class Room(NamedTuple):
    """What row_gradients leaves to the kernels of the weights, one line per position of a chunk; or nothing, and they
    make it once more."""

    layers: Tensor | None  # dz and h of every hidden layer in the dtype of the rows, as RoomPlaces says
    ds: Tensor | None  # fp32
    chunk: Tensor | None  # [4] int64: first and last candidate and place, each last one past the chunk
    residual: Tensor | None  # [2] fp32, see descent.without_residual: of a history cut by the end of a chunk


class FirstGrads(NamedTuple):
    """What first_layer_kernel writes."""

    query: Tensor  # [splits, Q, D] fp32: the part through A
    term: Tensor  # [splits, Q, H1] fp32: dc
    folded: Tensor | None  # outer: dA [last - first, H1, D] fp32
    parts: Tensor  # [programs, size] fp32: dWk' [H1, D] and dWp' [H1, D]; nothing for outer


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
    places: WeightPlaces
    activation: str  # that of weights.Form
    fast: bool  # instructions of NVIDIA's for 16 bit: tanh.approx, and two products at once


class RoomPlaces(NamedTuple):
    """Where a line of Room.layers holds what, per hidden layer."""

    dz: tuple[int, ...]
    h: tuple[int, ...]
    stride: int  # entries of a line


class UpperPlaces(NamedTuple):
    """Where a program's part of upper_layers_kernel holds what, per hidden layer above the first."""

    weights: tuple[int, ...]  # [out, in]
    biases: tuple[int, ...]  # [out]
    weight_last: int  # [1, H]
    bias_last: int  # [1]
    size: int


class Pass(NamedTuple):
    """What a launch of the backward's kernels makes."""

    softmax: bool
    stop: int  # -1: everything; else the hidden layer whose Dice sums alone are wanted
    sums: int  # of the activation; 0 where another kernel makes them
    sums_at: tuple[int, ...]  # per hidden layer, where a program's part holds [SUMS, H]
    sums_size: int  # of a program's part
    room: RoomPlaces
    shared: str  # rows that several candidates have: "none"; "atomic"; "ordered": all in one program, one by one
