"""Hostile calls of every public entry point: each gives the right result, or is refused by the argument's name."""

from __future__ import annotations

import random
import re
import warnings

import numpy as np
import pytest
import torch
from support import hostile_models, hostile_ops
from support.hostile import replaced, replacements

import din_kernels as dk

CALLS = hostile_ops.CALLS | hostile_models.CALLS
CALLS_IN_ALL = 2000
REFUSALS = (TypeError, ValueError, IndexError, dk.BackendError)


def hostile(name: str, seed: int):
    """A valid call of entry point `name` with one or two arguments replaced, and what stands for them."""
    rng, values = random.Random(f"{name} {seed}"), np.random.default_rng([seed, len(name)])
    given, changes = CALLS[name].arguments(values), {}
    for argument in rng.sample(list(given), rng.choice([1, 1, 1, 2])):
        change = None
        while change is None:
            change = replaced(given[argument], rng.choice(replacements(given[argument])), rng)
        given[argument], changes[argument] = change
    return given, changes


def flat(value) -> list:
    """Nested lists as one list of float64 arrays, numbers and None."""
    if isinstance(value, (list, tuple)):
        return [each for part in value for each in flat(part)]
    if isinstance(value, torch.Tensor):
        real = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
        return [real.double().as_subclass(torch.Tensor).numpy()]
    return [value if value is None else np.asarray(value, dtype=np.float64)]


def same(got, expected) -> bool:
    got, expected = flat(got), flat(expected)
    if len(got) != len(expected):
        return False
    for each, right in zip(got, expected, strict=True):
        if each is None or right is None:
            if each is not right:
                return False
        elif each.shape != right.shape or not np.allclose(each, right, rtol=2e-3, atol=2e-3, equal_nan=True):
            return False
    return True


def fault(name: str, seed: int) -> str | None:
    """What is wrong with the answer to a hostile call, or None."""
    given, changes = hostile(name, seed)
    made = f"{name}, call {seed}, " + ", ".join(f"{argument}={what}" for argument, what in changes.items())
    try:
        expected = CALLS[name].expected(given)
    except Exception as illegal:
        expected = illegal
    try:
        got = CALLS[name].run(given)
    except REFUSALS as refused:
        message = str(refused)
        named = any(re.search(rf"\b{re.escape(argument)}\b", message) for argument in changes)
        worded = re.search(r"\b(must|needs?|belong|exclude)\b.*\b(got|is an?)\b", message, re.DOTALL)
        return None if named and worded else f"{made}: {type(refused).__name__}: {message}"
    except Exception as error:
        return f"{made}: {type(error).__name__}: {error}"
    if isinstance(expected, Exception):
        return f"{made}: accepted, and the oracle says {type(expected).__name__}: {expected}"
    return None if same(got, expected) else f"{made}: got {got}, expected {expected}"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_a_valid_call_gives_the_independent_result(name):
    for seed in range(8):
        given = CALLS[name].arguments(np.random.default_rng(seed))
        expected = CALLS[name].expected(given)
        assert same(CALLS[name].run(given), expected)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_call_is_right_or_refused_by_name(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults = [fault(name, seed) for seed in range(-(-CALLS_IN_ALL // len(CALLS)))]
    wrong = [each for each in faults if each is not None]
    assert not wrong, f"{len(wrong)} of {len(faults)}:\n" + "\n".join(wrong)


def _with_gradients(make, **changes):
    """The gradients of a call on tensors that `make` passes through, as one list."""
    torch.manual_seed(0)
    given = {name: make(tensor) for name, tensor in changes.items()}
    weights = [torch.randn(4, 12, requires_grad=True), torch.randn(1, 4, requires_grad=True)]
    alpha, table = torch.zeros(3, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    history = dk.Jagged(given["values"], given["offsets"])
    pooled = dk.local_activation(given["query"], history, weights, [given["bias"], given["bias"][:1]])
    y = dk.dice(given["values"], alpha, training=True, mask=given["mask"])[0]
    penalty = dk.mba_penalty(table, given["ids"], given["counts"], 0.1)
    (pooled.square().sum() + y.square().sum() + penalty).backward()
    return [*(each.grad for each in weights), alpha.grad, table.grad]


def test_inference_tensors_give_the_gradients_of_plain_ones():
    def frozen(tensor):
        with torch.inference_mode():
            return tensor.clone()

    given = {
        "query": torch.ones(2, 3),
        "values": torch.arange(15.0).view(5, 3) / 9,
        "offsets": torch.tensor([0, 2, 5]),
        "bias": torch.ones(4),
        "mask": torch.tensor([True, True, False, True, True]),
        "ids": torch.tensor([0, 3, 3]),
        "counts": torch.tensor([1, 2, 3, 4]),
    }
    for got, expected in zip(_with_gradients(frozen, **given), _with_gradients(lambda t: t, **given), strict=True):
        assert torch.equal(got, expected) and expected.any()


def test_a_zero_tensor_of_indices_is_refused():
    zeros = torch._efficientzerotensor((2,), dtype=torch.int64)
    with pytest.raises(TypeError, match="offsets must have its numbers in memory, got one of torch's zero tensors"):
        dk.Jagged(torch.ones(0, 3), zeros)
