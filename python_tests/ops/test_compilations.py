"""Claims about how often torch.compile compiles: twice for any number of sizes, once exactly and once for all.

A size in a message, an int(), a comparison or a cache key while tracing makes a constant of it, and every new size then
compiles anew, up to torch's limit of 8.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import din_kernels as dk
from din_kernels.data import batches, generate
from din_kernels.models.base import inputs_of
from din_kernels.ops.sparse_update import RULES, Hyper, Table, sparse_update

SIZES = range(11, 31)  # above every width, since torch takes sizes that were equal once to be equal always
DIM, ROWS = 6, 40
TABLES = [torch.randn(ROWS, width, requires_grad=True) for width in (4, 2)]


def lengths(n: int) -> torch.Tensor:
    return torch.arange(n) % 4 + 1


def packed(n: int) -> dk.Jagged:
    return dk.Jagged.from_lengths(torch.randn(int(lengths(n).sum()), DIM, requires_grad=True), lengths(n))


def padded(n: int) -> torch.Tensor:
    return torch.randn(n, n + 7, DIM)


def ids(n: int) -> torch.Tensor:
    return torch.arange(n) % ROWS


def by_id(n: int) -> dk.Gather:
    rows = ids(int(lengths(n).sum()))
    return dk.Gather([rows, rows], TABLES, torch.nn.functional.pad(lengths(n).cumsum(0), (1, 0)))


# name: (how the unit is made, its arguments for n users)
UNITS = {
    "packed": ({}, lambda n: {"query": torch.randn(n, DIM), "history": packed(n)}),
    "packed, query_to_user": (
        {"normalize": "softmax"},
        lambda n: {
            "query": torch.randn(2 * n, DIM),
            "history": packed(n),
            "query_to_user": torch.arange(n).repeat_interleave(2),
            "return_weights": True,
            "total_pairs": 2 * int(lengths(n).sum()),
        },
    ),
    "packed, [B, C, D]": ({}, lambda n: {"query": torch.randn(n, 3, DIM), "history": packed(n)}),
    "padded, [B, C, D]": (
        {},
        lambda n: {"query": torch.randn(n, n + 2, DIM), "history": padded(n), "lengths": lengths(n)},
    ),
    "padded left": (
        {"features": "outer"},
        lambda n: {
            "query": torch.randn(n, DIM),
            "history": padded(n),
            "lengths": lengths(n),
            "padding_side": "left",
            "return_weights": True,
        },
    ),
    "masked, [B, C, D]": (
        {},
        lambda n: {
            "query": torch.randn(n, 3, DIM),
            "history": padded(n),
            "mask": torch.rand(n, n + 7) > 0.5,
            "return_weights": True,
        },
    ),
    "padded statistics": (
        {"activation": "dice", "stats": "padded"},
        lambda n: {"query": torch.randn(n, DIM), "history": padded(n), "lengths": lengths(n)},
    ),
    "by id": (
        {"activation": "dice"},
        lambda n: {"query": dk.Gather([ids(n), ids(n)], TABLES), "history": by_id(n)},
    ),
}


def compilations(function, arguments) -> int:
    """How often `function` is compiled for calls of all sizes with `arguments(n)`."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for n in SIZES:
        compiled(*arguments(n))
    return counter.frame_count


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_compiles_twice(name):
    options, arguments = UNITS[name]
    unit = dk.nn.LocalActivationUnit(DIM, (5,), **options)
    assert compilations(lambda given: unit(**given), lambda n: (arguments(n),)) <= 2


def test_a_history_that_is_made_inside_compiles_twice():
    unit = dk.nn.LocalActivationUnit(DIM, (5,))

    def call(query, values, offsets, query_to_user):
        return unit(query, dk.Jagged(values, offsets), query_to_user=query_to_user)

    def arguments(n):
        history = packed(n)
        return torch.randn(2 * n, DIM), history.values, history.offsets, torch.arange(n).repeat_interleave(2)

    assert compilations(call, arguments) <= 2


@pytest.mark.parametrize("form", ["rows", "lengths", "mask", "jagged"])
def test_dice_compiles_twice(form):
    dice = dk.nn.Dice(DIM)

    def arguments(n):
        if form == "jagged":
            return (packed(n), {})
        if form == "rows":
            return (torch.randn(n, DIM), {})
        valid = {"lengths": lengths(n)} if form == "lengths" else {"mask": torch.rand(n, n + 7) > 0.5}
        return padded(n), valid

    assert compilations(lambda x, valid: dice(x, **valid), arguments) <= 2


@pytest.mark.parametrize("sparse", [False, True])
def test_the_penalty_compiles_twice(sparse):
    counts = torch.ones(ROWS)

    def penalty(given, more):
        offsets = torch.tensor([0, 2, given.shape[0]])
        history = dk.Jagged(given, offsets)
        return dk.mba_penalty(TABLES, [history, more], [counts, counts], 0.1, padding_idx=0, sparse=sparse)

    assert compilations(penalty, lambda n: (ids(2 * n), ids(n).view(-1, 1))) <= 2


@pytest.mark.parametrize("rule", RULES)
def test_a_sparse_step_compiles_twice(rule):
    hyper = Hyper(lr=0.1, step=0.1, beta1=0.9, beta2=0.99, eps=1e-8, coeff=0.1)

    def step(weight, states, ids, grads, counts):
        sparse_update([Table(weight, states, ids, grads, hyper, counts, padding_idx=0)], rule)

    def arguments(n):
        weight = torch.randn(ROWS + n, 4)
        states = [torch.zeros(weight.shape if shape == "VD" else weight.shape[:1]) for shape in RULES[rule]]
        return weight, states, ids(2 * n), torch.randn(2 * n, 4), torch.ones(ROWS + n)

    assert compilations(step, arguments) <= 2


@pytest.mark.parametrize("form", ["Batch", "dict"])
def test_a_model_that_takes_batches_compiles_twice(form):
    generated = generate(seed=0, users=100)
    interactions = generated.interactions
    items = len(interactions.category_ids)
    config = dk.models.DINConfig.default(items, interactions.n_categories, dim=8, sparse=False)

    def arguments(n):
        batch = next(iter(batches(generated.split.train, interactions, n, shuffle=True, seed=n)))
        return (batch if form == "Batch" else inputs_of(batch),)

    assert compilations(dk.models.DIN(config), arguments) <= 2
