"""What an op hands to a backend.

The module `backends/<name>/<op>.py` of a backend has

    refuses(request)              None, or why the backend cannot serve a call
    forward(call)                 the op's results, as `<Op>Result`
    backward(call, saved, grads)  the gradients, as `<Op>Gradients`, or the tensor where there is but one;
                                  `sparse_update` has no backward

Fields stand in the order of the op's schema in `ops/schemas.py`, which also says what a backward takes: `<Op>Grads`,
the same call as the forward's, and `<Op>Saved`, what the forward left for it. Dimensions are named in
docs/architecture.md. Tensors of one call lie on one device, and nothing but their strides and values is unchecked.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from din_kernels.options import ACTIVATIONS, RULES


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which kernels compute on rows of `dtype`: fp32 for bf16 and fp16."""
    return torch.float32 if dtype == torch.float32 else torch.promote_types(dtype, torch.float32)


# --- local_activation -------------------------------------------------------------------------------------------------


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
    query_padding: list[int]  # per table of ids the row without gradient, -1: none; the autograd formula reads it alone
    history_padding: list[int]
    features: str
    activation: str
    normalize: str
    scale: float

    @property
    def device(self) -> torch.device:
        """That of all tensors."""
        return self.begin.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows."""
        return self.query_tables[0].dtype

    @property
    def queries(self) -> int:
        """Q."""
        return (self.query_ids or self.query_tables)[0].shape[0]

    @property
    def rows(self) -> int:
        """M."""
        return (self.history_ids or self.history_tables)[0].shape[0]

    @property
    def dim(self) -> int:
        """D."""
        return sum(table.shape[1] for table in self.query_tables)

    @property
    def hidden(self) -> list[int]:
        """Widths of the hidden layers."""
        return [bias.shape[0] for bias in self.biases[:-1]]

    @property
    def param_names(self) -> tuple[str, ...]:
        """Names of the parameters of one hidden layer, in order."""
        return ACTIVATIONS[self.activation].given(self.dice_training)

    def params_of(self, layer: int) -> list[Tensor]:
        """The parameters of a hidden layer, named by `param_names`."""
        each = len(self.param_names)
        return self.params[layer * each : (layer + 1) * each]


class LocalActivationResult(NamedTuple):
    """Results of `local_activation`; all of them are saved for backward."""

    pooled: Tensor  # [Q, D], dtype of the query
    logsumexp: Tensor  # [Q] float64 with softmax, else [0]: scores of 10,000 leave fp32 no digit behind the point
    pair_weights: Tensor  # [total_pairs], fp32 at least; 0 where no pair lies
    statistics: Tensor  # [2, sum of hidden widths] with dice_training, else [2, 0]; fp32 at least


LocalActivationSaved = LocalActivationResult


class LocalActivationGrads(NamedTuple):
    """What a backward of `local_activation` starts from."""

    pooled: Tensor  # [Q, D]
    pair_weights: Tensor | None  # [total_pairs]
    need_query: bool
    need_history: bool


class LocalActivationGradients(NamedTuple):
    """What a backward of `local_activation` returns, each list as long as that of the call, of its tensors' dtypes."""

    query: list[Tensor]  # [Q, D_k] each, or [0] where not needed
    history: list[Tensor]  # [M, D_k] each, or [0] where not needed
    weights: list[Tensor]
    biases: list[Tensor]
    params: list[Tensor]


# --- dice -------------------------------------------------------------------------------------------------------------


class DiceCall(NamedTuple):
    """Inputs of `dice`."""

    x: Tensor  # [N, C]
    alpha: Tensor  # [C], fp32 at least, as the following
    weight: Tensor | None  # [C] of an affine batch norm
    bias: Tensor | None  # [C]
    mean: Tensor | None  # [C], read in evaluation alone
    var: Tensor | None  # [C]
    mask: Tensor | None  # [N] bool
    training: bool
    eps: float

    @property
    def device(self) -> torch.device:
        """That of all tensors."""
        return self.x.device


class DiceResult(NamedTuple):
    """Results of `dice`."""

    y: Tensor  # [N, C]
    mean: Tensor  # [C], as used
    var: Tensor  # [C], as used
    count: Tensor  # 0-D int64, valid rows


class DiceSaved(NamedTuple):
    """What a forward of `dice` leaves for its backward: the statistics of its result, not y."""

    mean: Tensor  # [C], as used
    var: Tensor  # [C], as used


class DiceGrads(NamedTuple):
    """What a backward of `dice` starts from."""

    y: Tensor  # [N, C]


class DiceGradients(NamedTuple):
    """What a backward of `dice` returns."""

    x: Tensor  # [N, C]
    alpha: Tensor  # [C]
    weight: Tensor  # [C], or [0] where the call has none
    bias: Tensor  # [C], or [0]


# --- mba_penalty ------------------------------------------------------------------------------------------------------


class MbaPenaltyCall(NamedTuple):
    """Inputs of `mba_penalty`."""

    weight: Tensor  # [V, D]
    ids: Tensor  # [N]
    counts: Tensor  # [V]
    coeff: float
    padding_idx: int  # -1: none
    sparse: bool

    @property
    def device(self) -> torch.device:
        """That of all tensors."""
        return self.weight.device


class MbaPenaltyResult(NamedTuple):
    """Results of `mba_penalty`."""

    penalty: Tensor  # 0-D, fp32 at least
    unique: Tensor  # [N] int64: the unique ids but padding_idx in ascending order, -1 behind them
    unique_count: Tensor  # 0-D int64


class MbaPenaltySaved(NamedTuple):
    """What a forward of `mba_penalty` leaves for its backward."""

    unique: Tensor  # [N] int64
    unique_count: Tensor  # 0-D int64


class MbaPenaltyGrads(NamedTuple):
    """What a backward of `mba_penalty` starts from."""

    penalty: Tensor  # 0-D
    entries: int  # rows of a sparse gradient; those behind unique_count are zero


# --- sparse_update ----------------------------------------------------------------------------------------------------


class Hyper(NamedTuple):
    """Numbers of one table's step; formulas in csrc/include/din_kernels/sparse_update.h."""

    lr: float
    step: float  # lr with the rule's own corrections, such as Adam's
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    coeff: float = 0.0
    maximize: bool = False
    decoupled: bool = False


class Table(NamedTuple):
    """One table's part of a step."""

    weight: Tensor  # [V, D], updated in place
    states: list[Tensor]  # as RULES says, updated in place; fp32 where weight is fp16 or bf16
    ids: Tensor  # [N] int64 or int32, in any order, with duplicates
    grads: Tensor  # [N, D], dtype of weight
    hyper: Hyper
    counts: Tensor | None = None  # [V], n_j; None: no regularization
    padding_idx: int | None = None  # a row that is never touched; to a backend -1 says that there is none


class SparseUpdateCall(NamedTuple):
    """Inputs of `sparse_update`, one entry per table in each list; `tables` has them table by table."""

    weights: list[Tensor]  # [V, D] each, updated in place
    states: list[Tensor]  # those of the rule, table by table; updated in place
    ids: list[Tensor]  # [N] each
    grads: list[Tensor]  # [N, D] each
    counts: list[Tensor | None]  # [V] each; None: no regularization
    padding_idx: list[int]  # -1: none
    lr: list[float]  # this and the following are the fields of Hyper
    step: list[float]
    beta1: list[float]
    beta2: list[float]
    eps: list[float]
    coeff: list[float]
    maximize: list[bool]
    decoupled: list[bool]
    rule: str

    @classmethod
    def of(cls, tables: Sequence[Table], rule: str) -> SparseUpdateCall:
        """The call that updates `tables`."""
        numbers = {
            name: [(bool if name in ("maximize", "decoupled") else float)(getattr(t.hyper, name)) for t in tables]
            for name in Hyper._fields
        }
        return cls(
            weights=[t.weight for t in tables],
            states=[state for t in tables for state in t.states],
            ids=[t.ids for t in tables],
            grads=[t.grads for t in tables],
            counts=[t.counts for t in tables],
            padding_idx=[-1 if t.padding_idx is None else t.padding_idx for t in tables],
            **numbers,
            rule=rule,
        )

    @property
    def device(self) -> torch.device:
        """That of all tensors."""
        return self.weights[0].device

    def tables(self) -> Iterator[Table]:
        """Each table's part."""
        each = len(RULES[self.rule])
        numbers = zip(*(getattr(self, name) for name in Hyper._fields), strict=True)
        for at, hyper in enumerate(numbers):
            yield Table(
                weight=self.weights[at],
                states=self.states[at * each : (at + 1) * each],
                ids=self.ids[at],
                grads=self.grads[at],
                hyper=Hyper(*hyper),
                counts=self.counts[at],
                padding_idx=self.padding_idx[at],
            )


# --- where tensors are ------------------------------------------------------------------------------------------------


class TensorFields(NamedTuple):
    """Positions of the fields of a named tuple that hold tensors."""

    single: tuple[int, ...]  # a tensor or None
    lists: tuple[int, ...]  # a list of them


def _tensor_fields(kind: type[Any]) -> TensorFields:
    hints = typing.get_type_hints(kind)
    single = [at for at, name in enumerate(kind._fields) if hints[name] in (Tensor, Tensor | None)]
    lists = [at for at, name in enumerate(kind._fields) if hints[name] in (list[Tensor], list[Tensor | None])]
    return TensorFields(tuple(single), tuple(lists))


# Of every named tuple above.
TENSOR_FIELDS = {
    kind: _tensor_fields(kind)
    for kind in list(globals().values())
    if isinstance(kind, type) and hasattr(kind, "_fields")
}
