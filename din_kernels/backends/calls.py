"""What an op hands to a backend: one call per op, its fields those of the op's schema in order (`ops/schemas.py`).

A backend's module of an op has `forward(call)`, which returns the op's results, and `backward(call, saved, grads)`,
which takes what the forward saved and the gradients that came, and returns those of the call. Shapes are in the schemas;
dimensions are named in docs/architecture.md.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LocalActivationCall(NamedTuple):
    """Inputs of `local_activation`."""

    query_tables: list[Tensor]  # [V_k, D_k] each; without query_ids one table, the rows [Q, D] themselves
    query_ids: list[Tensor]  # [Q] each, one per table, or none
    history_tables: list[Tensor]  # [V_k, D_k] each; without history_ids one table, the rows [M, D] themselves
    history_ids: list[Tensor]  # [M] each, one per table, or none
    begin: Tensor  # [U] int64
    length: Tensor  # [U] int64
    row_index: Tensor | None  # [capacity] int64
    row_mask: Tensor | None  # [M] bool; false: the row counts in Dice's statistics and nowhere else
    query_to_user: Tensor | None  # [Q] int64; None: candidate i attends to history i
    pair_begin: Tensor | None  # [Q] int64; None: the weights are not returned
    total_pairs: int
    weights: list[Tensor]  # [out, in] each, hidden layers and the output layer
    biases: list[Tensor]  # [out] each
    params: list[Tensor]  # of the activation, hidden layer by hidden layer; [H] or [1] each
    eps: list[float]  # of Dice, per hidden layer
    dice_training: bool
    sparse_grad: bool
    features: str
    activation: str
    normalize: str
    scale: float


class LocalActivationResult(NamedTuple):
    """Results of `local_activation`; all of them are saved for backward."""

    pooled: Tensor  # [Q, D], dtype of the query
    logsumexp: Tensor  # [Q] float64 with softmax, else [0]
    pair_weights: Tensor  # [total_pairs], fp32 at least; 0 where no pair lies
    statistics: Tensor  # [2, sum of hidden widths] with dice_training, else [2, 0]; fp32 at least


class LocalActivationGrads(NamedTuple):
    """What a backward of `local_activation` starts from."""

    pooled: Tensor  # [Q, D]
    pair_weights: Tensor | None  # [total_pairs]
    need_query: bool
    need_history: bool


class LocalActivationGradients(NamedTuple):
    """What a backward of `local_activation` returns, each list as long as that of the call."""

    query: list[Tensor]  # [Q, D_k] each, or [0] where not needed
    history: list[Tensor]  # [M, D_k] each, or [0] where not needed
    weights: list[Tensor]
    biases: list[Tensor]
    params: list[Tensor]


class DiceCall(NamedTuple):
    """Inputs of `dice`."""

    x: Tensor  # [N, C]
    alpha: Tensor  # [C], fp32 at least, as the following
    weight: Tensor | None  # [C] of an affine batch norm
    bias: Tensor | None  # [C]
    mean: Tensor | None  # [C], read in evaluation; in a backward the mean that the forward used
    var: Tensor | None  # [C]
    mask: Tensor | None  # [N] bool
    training: bool
    eps: float


class DiceResult(NamedTuple):
    """Results of `dice`."""

    y: Tensor  # [N, C]
    mean: Tensor  # [C], as used
    var: Tensor  # [C]
    count: Tensor  # 0-D int64, valid rows


class DiceGradients(NamedTuple):
    """What a backward of `dice` returns."""

    x: Tensor  # [N, C]
    alpha: Tensor  # [C]
    weight: Tensor  # [C], or [0] where the call has none
    bias: Tensor  # [C], or [0]


class MbaPenaltyCall(NamedTuple):
    """Inputs of `mba_penalty`."""

    weight: Tensor  # [V, D]
    ids: Tensor  # [N]
    counts: Tensor  # [V]
    coeff: float
    padding_idx: int  # -1: none
    sparse: bool


class MbaPenaltyResult(NamedTuple):
    """Results of `mba_penalty`."""

    penalty: Tensor  # 0-D
    unique: Tensor  # [N] int64: the unique ids in ascending order, -1 behind them
    unique_count: Tensor  # 0-D int64


class SparseUpdateCall(NamedTuple):
    """Inputs of `sparse_update`, one entry per table in each list."""

    weights: list[Tensor]  # [V, D] each, updated in place
    states: list[Tensor]  # those of the rule, table by table; updated in place
    ids: list[Tensor]  # [N] each
    grads: list[Tensor]  # [N, D] each
    counts: list[Tensor | None]  # [V] each; None: no regularization
    padding_idx: list[int]  # -1: none
    lr: list[float]
    step: list[float]  # lr with the rule's own corrections, such as Adam's
    beta1: list[float]
    beta2: list[float]
    eps: list[float]
    coeff: list[float]
    maximize: list[bool]
    decoupled: list[bool]
    rule: str
