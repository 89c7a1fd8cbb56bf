"""The options of every op, each described once; checks, modules, backends, commands and tests read them here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

OPS = ("local_activation", "dice", "mba_penalty", "sparse_update")

# Every backend, and on which device its tensors lie. The reference computes on any.
BACKENDS = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda", "reference": "any"}

# Per device the backends that serve by themselves, the first that can. CUDA C++ is not among them until its tests have
# passed on a GPU: use_backend("cuda") asks for it.
DEVICES = {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# --- the unit ---------------------------------------------------------------------------------------------------------


class Activation(NamedTuple):
    """What an activation of the unit's hidden layers is given per layer; every parameter is [H] or [1]."""

    learned: tuple[str, ...] = ()  # parameters that training moves
    statistics: tuple[str, ...] = ()  # running statistics; in training those of the batch stand for them

    @property
    def params(self) -> tuple[str, ...]:
        """All of them, in the order in which an op takes them."""
        return self.learned + self.statistics

    def given(self, batch_statistics: bool) -> tuple[str, ...]:
        """Those that an op takes: all, or without the running statistics where it takes the batch's."""
        return self.learned if batch_statistics else self.params


ACTIVATIONS = {
    "sigmoid": Activation(),
    "relu": Activation(),
    "prelu": Activation(learned=("slope",)),
    "tanh": Activation(),
    "silu": Activation(),
    "identity": Activation(),
    "dice": Activation(learned=("alpha",), statistics=("mean", "var")),
}

# Columns of phi(q, k), which are those of the first layer's weight, by D.
FEATURES: dict[str, Callable[[int], int]] = {
    "concat": lambda dim: 4 * dim,  # q, k, q - k, q * k
    "product": lambda dim: 3 * dim,  # q, k, q * k
    "outer": lambda dim: 2 * dim + dim * dim,  # q, k, vec(q k^T)
}

NORMALIZATIONS = ("none", "softmax")

# Rows in the batch statistics of Dice in training: the valid pairs, or all positions of a padded history.
STATISTICS = ("valid", "padded")

LAYOUTS = ("packed", "padded", "masked")  # of a history, as a kernel sees it

MAX_HIDDEN = 3  # hidden layers


def feature_width(dim: int, features: str) -> int:
    """Columns of phi(q, k): 4D for concat, 3D for product, 2D + D^2 for outer."""
    return FEATURES[features](dim)


# --- sparse steps -----------------------------------------------------------------------------------------------------

# States of every rule, as shapes: "VD" is [V, D], "V" is [V].
RULES: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("VD",),
    "nesterov": ("VD",),
    "adagrad": ("VD",),
    "rowwise_adagrad": ("V",),
    "adam": ("VD", "VD"),
}
