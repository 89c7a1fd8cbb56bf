"""Ragged edges of the local activation unit, as arguments of `verification.make_case`: one table for every backend."""

from __future__ import annotations

from typing import Any

EDGES: dict[str, dict[str, Any]] = {
    "no users": {"lengths": ()},
    "no candidates": {"lengths": (5,)},  # query_to_user repeats user u (u % 3) times
    "all histories empty": {"lengths": (0, 0, 0)},
    "one behaviour": {"lengths": (1, 1)},
    # The tiles of the CPU kernels hold 60 rows, they fold from 7 and 10 rows on, and their blocks hold 512 pairs. Empty
    # histories come first, between and last.
    "tile and block boundaries": {
        "lengths": (0, 1, 6, 7, 9, 10, 0, 59, 60, 61, 2, 600, 33, 0),
        "dim": 7,
        "hidden": (6, 5),
    },
    "histories over several blocks": {"lengths": (0, 700, 0, 3, 0, 0, 400), "dim": 8, "hidden": (8,)},
    "more empty histories than a window": {"lengths": (1, *(0,) * 200, 2), "dim": 8, "hidden": (8,)},
    "many short histories": {"lengths": (1, 2) * 70, "dim": 4, "hidden": (5,)},
    "D = 1": {"dim": 1},
    "D = 3": {"dim": 3},
    "D = 36": {"dim": 36, "hidden": (36,)},
    "D = 128": {"dim": 128, "hidden": (80, 40), "lengths": (70, 0, 3)},
    "no hidden layer": {"hidden": ()},
    "width 1": {"hidden": (1, 1)},
    "width 200": {"hidden": (200,), "lengths": (9, 4)},
    "3 hidden layers": {"hidden": (9, 20, 5)},
}

# Too many pairs for a device that runs one thread after the other.
LONG_EDGES: dict[str, dict[str, Any]] = {
    "100,000 behaviours": {"lengths": (0, 100_000), "dim": 4, "hidden": (3,)},
    # The default lengths of make_case, which the table above shortens for the slow devices.
    "D = 128, more histories": {"dim": 128, "hidden": (80, 40)},
    "width 200, more histories": {"hidden": (200,)},
}

# Held by the backends that split sums over D. The CPU kernels add 700 columns one after the other and miss the bound of
# float32 with it, by a factor of up to 2.6 (gradients of slopes and of the last layer).
WIDE_EDGES: dict[str, dict[str, Any]] = {
    "D beyond four warps' tiles": {"dim": 700, "hidden": (5,), "lengths": (3, 40)},
}
