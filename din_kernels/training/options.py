"""How to train: the options of the loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_type_hints

import torch

from din_kernels import checks
from din_kernels.training.typed import fits

OPTIMIZERS = ("adam", "sgd", "adagrad", "sparse-adam", "sparse-sgd", "sparse-adagrad", "sparse-rowwise-adagrad")
LARGEST = torch.finfo(torch.float32).max  # a larger number would be infinite in a float32 parameter


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `training.train`.

    Args:
        epochs: passes over the training samples.
        batch_size: histories in a batch; on Amazon each brings a positive and its negative.
        optimizer: "adam" (with sparse tables: torch.optim.SparseAdam on them), "sgd" or "adagrad", torch's; or
            "sparse-adam", "sparse-sgd", "sparse-adagrad", "sparse-rowwise-adagrad": `din_kernels.optim` on sparse
            tables, torch's Adam, SGD or Adagrad on the rest.
        mba: coefficient of the mini-batch aware regularization of the tables (paper, section 5.1), with counts n_j of
            the training samples; needs a sparse-* optimizer.
        l2: coefficient of an L2 penalty on every row of every table in every step, as CTR libraries have it; needs
            dense tables.
        lr: learning rate.
        lr_decay: epoch e (from 0) trains with `lr * lr_decay ** e`.
        seed: of the model's initialization, the order of batches and torch's generator; 0 to 2^63 - 1.
        eval_batch_size: histories in a batch of evaluation.

    Raises:
        TypeError: a value of another type than its field's.
        ValueError: an unknown optimizer, or a number that is not finite or out of range.
    """

    epochs: int = 1
    batch_size: int = 512
    optimizer: str = "adam"
    lr: float = 1e-3
    lr_decay: float = 1.0
    seed: int = 0
    eval_batch_size: int = 2048
    mba: float = 0.0
    l2: float = 0.0

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            fits(name, getattr(self, name), kind, TypeError)
            # A NumPy number becomes Python's, which a checkpoint may hold.
            object.__setattr__(self, name, kind(getattr(self, name)))
        checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        for name, least in (("epochs", 0), ("batch_size", 1), ("eval_batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0..2^63 - 1, got {self.seed}")
        for name in ("lr", "lr_decay"):
            if not 0 < getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} must be positive and finite in float32, got {getattr(self, name)}")
        last = math.log(self.lr) + max(0, self.epochs - 1) * math.log(self.lr_decay)
        if last > math.log(LARGEST):
            raise ValueError(
                f"lr * lr_decay ** (epochs - 1) must be finite in float32, "
                f"got {self.lr} * {self.lr_decay} ** {self.epochs - 1}"
            )
        for name in ("mba", "l2"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
            if getattr(self, name) > LARGEST:
                raise ValueError(f"{name} must be finite in float32, got {getattr(self, name)}")
        if self.mba and not self.sparse:
            known = ", ".join(name for name in OPTIMIZERS if name.startswith("sparse-"))
            raise ValueError(f"mba needs one of the optimizers {known}, got {self.optimizer}")
        if self.l2 and self.sparse:
            raise ValueError(f"l2 reaches every row and needs dense tables, got optimizer {self.optimizer}")

    @property
    def sparse(self) -> bool:
        """Whether the optimizer is one of `din_kernels.optim`, which needs sparse tables."""
        return self.optimizer.startswith("sparse-")
