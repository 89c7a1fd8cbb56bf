"""The hostile calls: which entry points there are, and what call number `seed` of each is given."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from support import hostile_models, hostile_ops
from support.hostile import replaced, replacements

CALLS = hostile_ops.CALLS | hostile_models.CALLS


# What a kernel may well be given: values that torch takes for plain ones, though they lie in memory in another way.
MILD = (
    *("inference", "negated", "strided", "subclass", "parameter", "result of an operation", "zero tensor", "expanded"),
    *("NaN", "huge", "negative", "a tuple", "torch.float64", "torch.float16", "torch.bfloat16", "torch.int32", "empty"),
)


def hostile(name: str, seed: int, mild: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """A valid call of entry point `name` with one or two arguments replaced, and what stands for them.

    mild: by one of `MILD` alone, so that most calls are served.
    """
    rng, values = random.Random(f"{name} {seed}{' mild' * mild}"), np.random.default_rng([seed, len(name)])
    given, changes = CALLS[name].arguments(values), {}
    replaceable = [argument for argument, value in given.items() if not mild or _holds_tensors(value)]
    for argument in rng.sample(replaceable, min(rng.choice([1, 1, 1, 2]), len(replaceable))):
        change = None
        while change is None or (mild and not change[1].endswith(MILD)):
            change = replaced(given[argument], rng.choice(replacements(given[argument])), rng)
        given[argument], changes[argument] = change
    return given, changes


def _holds_tensors(value) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return any(map(_holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, torch.Tensor)


def told(name: str, seed: int, mild: bool = False) -> str:
    """A hostile call in words."""
    changes = hostile(name, seed, mild)[1]
    return f"{name},{' mild' * mild} call {seed}, " + ", ".join(f"{key}={what}" for key, what in changes.items())
