"""Which loop of the machine code is which loop of the source.

Both are trees, and compilers keep their shape: loops are matched by nesting and order. Exceptions that are understood:

    machine code     source
    [wait] [A]       for A         a loop that waits for a barrier has no counterpart
    [A] [A']         for A         an innermost loop was unrolled: A takes several steps at once, A' the rest
                     for A         an innermost loop of few steps, always as many, was unrolled wholly
"""

from __future__ import annotations

from typing import Any

import machine_code
import numpy as np
from loop_trips import SourceLoop

WHOLLY = 16  # steps at most that a compiler unrolls wholly

Pairs = list[tuple[machine_code.Loop, np.ndarray, int]]


def matched(loops: list[machine_code.Loop], source: list[SourceLoop], depth: int = 1) -> Pairs | None:
    """(loop of the machine code, its trips in each program, loops around its body), or None where the two differ."""
    loops = [loop for loop in loops if not loop.waits]
    if not source:
        return [] if not loops else None
    first, rest = source[0], source[1:]
    for taken in (1, 2, 0):
        own, pairs = loops[:taken], None
        if taken == 1 and own:
            inner = matched(own[0].inner, first.inner, depth + 1)
            pairs = None if inner is None else [(own[0], first.trips, depth), *inner]
        elif taken == 2 and len(own) == 2 and not any(loop.inner for loop in (first, *own)):
            steps = max(1, round(accesses(own[0]) / max(accesses(own[1]), 1)))
            pairs = [(own[0], first.trips // steps, depth), (own[1], first.trips % steps, depth)]
        elif taken == 0 and not first.inner and len(set(first.trips.tolist())) <= 1 and first.trips.max() <= WHOLLY:
            pairs = []
        after = None if pairs is None else matched(loops[taken:], rest, depth)
        if after is not None:
            return [*pairs, *after]
    return None


def accesses(loop: machine_code.Loop) -> int:
    """Loads and stores of a loop."""
    kinds = machine_code.kinds_of(loop.blocks)
    return kinds["global"] + kinds["shared"]


def shown(loops: list[Any]) -> str:
    """Loops as nested brackets."""
    return "[" + " ".join(shown(loop.inner) for loop in loops if not getattr(loop, "waits", False)) + "]"
