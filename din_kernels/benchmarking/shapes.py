"""The house shapes: the sizes at which everything is measured, named once for tests, benchmarks and documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from din_kernels import config
from din_kernels.backends.reference.local_activation import features_of
from din_kernels.jagged import Jagged
from din_kernels.nn import LocalActivationUnit

REAL_DATA = "amazon_electronics/seq_random5000.txt"


class ShapeUnavailable(Exception):
    """The shape needs something that is not there; says what."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one call of the unit.

    Args:
        name: key in `SHAPES`.
        lengths: draws `[U]` history lengths from a generator seeded with 0.
        width: T of the padded form.
        dim: D.
        hidden, activation: of the unit.
        candidates: per user; 1 without `query_to_user`.
        dtype: of queries, histories and weights.
        about: one line for tables and documentation.
    """

    name: str
    lengths: Callable[[np.random.Generator], np.ndarray]
    width: int
    about: str
    dim: int = 128
    hidden: tuple[int, ...] = (80, 40)
    activation: str = "sigmoid"
    candidates: int = 1
    dtype: torch.dtype = torch.float32


class Inputs(NamedTuple):
    """One call of the unit: Q candidates over U histories of N behaviours."""

    unit: LocalActivationUnit
    query: torch.Tensor  # [Q, D]
    history: Jagged  # values [N, D]
    query_to_user: torch.Tensor | None  # [Q], identity when None
    grad: torch.Tensor  # [Q, D], gradient of the pooled rows

    @property
    def pairs(self) -> int:
        """(candidate, behaviour) pairs."""
        lengths = self.history.lengths()
        return int((lengths if self.query_to_user is None else lengths[self.query_to_user]).sum())


def inputs_of(shape: Shape, seed: int = 0) -> Inputs:
    """Queries and behaviours of std 0.5 and torch's initial weights, the same for the same seed.

    Raises:
        ShapeUnavailable: `real` without its data.
    """
    lengths = torch.from_numpy(np.asarray(shape.lengths(np.random.default_rng(seed)), np.int64))
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, shape.dim, generator=generator).mul_(0.5).to(shape.dtype)

    users = len(lengths)
    query_to_user = torch.arange(users).repeat_interleave(shape.candidates) if shape.candidates > 1 else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unit = LocalActivationUnit(shape.dim, shape.hidden, shape.activation, dtype=shape.dtype)
    queries = users * shape.candidates
    query, history = normal(queries), Jagged.from_lengths(normal(int(lengths.sum())), lengths)
    if shape.activation == "prelu":
        _leave_kink(unit, query, history)
    return Inputs(unit, query, history, query_to_user, normal(queries))


@torch.no_grad()
def _leave_kink(unit: LocalActivationUnit, query: torch.Tensor, history: Jagged) -> None:
    """Scales behaviours of which the first layer's z lies within 1e-6 of PReLU's kink.

    Among millions of z some round to the other side of 0 when they are added up in another order, and the gradient of
    that pair then differs by the kink, not by an error.
    """
    first = unit.linears[0].double()
    candidate = query.double().repeat_interleave(history.lengths(), 0)
    near = torch.arange(history.num_rows)
    while len(near):
        z = first(features_of(candidate[near], history.values[near].double(), unit.features))
        near = near[(z.abs() < 1e-6).any(1)]
        history.values[near] *= 1.01
    first.to(query.dtype)


def work(inputs: Inputs) -> int:
    """Floating-point operations of one forward, folded: 2 (D H1 + H1 H2 + ... + H) per pair; four times with backward.

    The fold itself and the pooling are not counted.
    """
    widths = [inputs.unit.dim, *inputs.unit.hidden, 1]
    return 2 * inputs.pairs * sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))


def _uniform(users: int, longest: int):
    return lambda rng: rng.integers(1, longest + 1, users)


def _all(users: int, length: int):
    return lambda rng: np.full(users, length)


def _real(rng: np.random.Generator) -> np.ndarray:
    """1024 of the lengths of all next-item samples (k = 1 .. n - 1 of a user's n behaviours), cut at 100."""
    try:
        path = config.data_set(REAL_DATA)
    except FileNotFoundError as missing:
        raise ShapeUnavailable(str(missing)) from missing
    behaviours = [line.count(" ") for line in path.read_text().splitlines()]
    lengths = np.concatenate([np.arange(1, n) for n in behaviours])
    return np.minimum(rng.choice(lengths, 1024, replace=False), 100)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("uniform100", _uniform(1024, 100), 100, "1024 users, lengths uniform on 1..100"),
        Shape("uniform100_d64", _uniform(1024, 100), 100, "as uniform100", dim=64),
        Shape("full100", _all(1024, 100), 100, "1024 users, all lengths 100"),
        Shape("real", _real, 100, "1024 users, lengths of amazon_electronics' next-item samples, cut at 100"),
        Shape(
            "industrial",
            _uniform(5000, 50),
            50,
            "5000 users, lengths uniform on 1..50, H=(36,), PReLU",
            dim=36,
            hidden=(36,),
            activation="prelu",
        ),
        Shape("long", _all(64, 10_000), 10_000, "64 users, all lengths 10,000", dim=64),
        Shape("serving", _all(1, 100), 100, "one history of 100, 500 candidates", candidates=500),
        Shape(
            "gpu_train",
            _uniform(16_384, 200),
            200,
            "16,384 users, lengths uniform on 1..200, bf16",
            dtype=torch.bfloat16,
        ),
    )
}

# What a CPU measures, in the order of the tables.
CPU_SHAPES = ("uniform100", "uniform100_d64", "full100", "real", "industrial", "long", "serving")
