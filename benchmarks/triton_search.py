"""Finds the unit's tile shapes on this machine's GPU and stores them with the package, as what its chip overrides.

    python benchmarks/triton_search.py [--dry-run]

For each kernel and element size, candidates are timed in turn on a house shape that takes that path; a candidate that
does not compile or launch is left out, and the fastest is kept where it beats the stored one by more than 2 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from din_kernels.backends import unavailable, use_backend
from din_kernels.backends.triton import chips
from din_kernels.benchmarking.shapes import SHAPES, inputs_of
from din_kernels.jagged import Jagged

CONFIGS = Path(chips.__file__).parent / "configs" / "local_activation.json"
# Element size and path: a house shape, and in which dtype.
PATHS = {
    ("16 bit", "folded"): ("gpu_train", torch.bfloat16),
    ("16 bit", "grouped"): ("industrial", torch.bfloat16),
    ("32 bit", "folded"): ("uniform100", torch.float32),
    ("32 bit", "grouped"): ("industrial", torch.float32),
}


def candidates(path: str) -> list[dict[str, int]]:
    """Tile shapes, warps and stages worth a try."""
    tiles = [(1, length) for length in (16, 32, 64, 128)] if path == "folded" else [(2, 8), (4, 8), (8, 8), (4, 16)]
    return [
        {"group": group, "length": length, "num_warps": warps, "num_stages": stages}
        for (group, length), warps, stages in itertools.product(tiles, (4, 8), (1, 2, 3))
    ]


def timed(shape: str, dtype: torch.dtype, backward: bool) -> float:
    """Milliseconds of a call, median, by device events."""
    from triton.testing import do_bench

    inputs = inputs_of(SHAPES[shape])
    unit, offsets = inputs.unit.cuda().to(dtype), inputs.history.offsets.cuda()
    query, values, grad = (each.cuda().to(dtype) for each in (inputs.query, inputs.history.values, inputs.grad))

    def forward():
        with torch.no_grad():
            return unit(query, Jagged(values, offsets))

    def both():
        leaves = [query.detach().requires_grad_(), values.detach().requires_grad_()]
        return torch.autograd.grad(unit(leaves[0], Jagged(leaves[1], offsets)), [*leaves, *unit.parameters()], grad)

    with use_backend("triton"):
        return do_bench(both if backward else forward, warmup=20, rep=100, return_mode="median")


def best(chip: str, size: str, path: str, backward: bool) -> dict[str, int] | None:
    """The fastest candidate, or None where the stored one is as good."""
    key = path + ("_backward" if backward else "")
    fold_from = 0 if path == "folded" else 10**9  # whatever the shape's lengths, this path
    table = chips.stored("local_activation")
    kept = json.dumps(table)
    found: list[tuple[float, Any]] = []
    for candidate in [None, *candidates(path)]:
        own = json.loads(kept)
        override = own.setdefault(chip, {})
        override.setdefault(size, {})["fold_from"] = fold_from
        if candidate is not None:
            override[size][key] = candidate
        table.clear()
        table.update(own)
        try:
            found.append((timed(*PATHS[size, path], backward), candidate))
        except Exception as error:  # too much shared memory, say
            print(f"{size} {key} {candidate}: {type(error).__name__}")
    table.clear()
    table.update(json.loads(kept))
    found.sort(key=lambda each: each[0])
    stored = next(time for time, candidate in found if candidate is None)
    print(f"{size} {key}: {found[0][0]:.3f} ms with {found[0][1]}, stored {stored:.3f} ms")
    return found[0][1] if found[0][0] < 0.98 * stored else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="list what would be tried")
    options = parser.parse_args()
    reason = "dry run" if options.dry_run else unavailable("triton")
    if reason is None and not torch.cuda.is_available():
        reason = "torch sees no GPU"
    if reason is not None:
        tries = sum(2 * len(candidates(path)) for _, path in PATHS)
        print(f"skipped: {reason}; would try {tries} candidates on {len(PATHS)} paths")
        return 0
    chip = chips.chip(torch.device("cuda", torch.cuda.current_device()))
    table = json.loads(CONFIGS.read_text())
    for (size, path), backward in itertools.product(PATHS, (False, True)):
        chosen = best(chip, size, path, backward)
        if chosen is not None:
            key = path + ("_backward" if backward else "")
            table.setdefault(chip, {}).setdefault(size, {})[key] = chosen
            CONFIGS.write_text(json.dumps(table, indent=4) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
