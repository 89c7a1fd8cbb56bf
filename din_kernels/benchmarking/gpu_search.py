"""Tile shapes on a GPU: the few that are worth a try, beside what is stored, in one process.

A candidate of the unit overrides keys of an element size in configs/local_activation.json, one of Dice the shape of a
kernel's launch. Both come as JSON, so that others can be tried without a change here:

    {"unit": [{"shape": "gpu_train", "size": "16 bit", "own": {"folded": {"length": 128}}}],
     "dice": [{"kernel": "sums", "itemsize": 2, "own": {"rows": 4}}]}
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from din_kernels.backends.triton import chips
from din_kernels.backends.triton.local_activation.memory import FORWARD, KINDS
from din_kernels.benchmarking import gpu, gpu_dice, gpu_profile
from din_kernels.benchmarking.shapes import SHAPES, inputs_of

UNIT = [
    {"shape": shape, "size": size, "own": {key: {"length": 32, "num_warps": warps}}}
    for shape, size in (("gpu_train", "16 bit"), ("uniform100", "32 bit"))
    for key in ("folded", *(f"folded, {kind}" for kind in KINDS if kind != FORWARD))
    for warps in (2, 4, 8)
]
DICE = [
    {"kernel": "statistics", "itemsize": 2, "own": {"vector": 8, "rows": 4, "warps": 16, "resident": 2}},
    {"kernel": "forward", "itemsize": 2, "own": {"vector": 4, "rows": 4}},
    {"kernel": "forward", "itemsize": 2, "own": {"rows": 2}},
    {"kernel": "sums", "itemsize": 2, "own": {"rows": 4}},
    {"kernel": "sums", "itemsize": 2, "own": {"vector": 8, "rows": 2, "warps": 16}},
    {"kernel": "backward", "itemsize": 2, "own": {"vector": 8, "rows": 2}},
    {"kernel": "backward", "itemsize": 2, "own": {"rows": 2}},
    {"kernel": "sums", "itemsize": 4, "own": {"rows": 4}},
    {"kernel": "backward", "itemsize": 4, "own": {"rows": 4}},
]


def candidates(path: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Those of a file, or the few that are written down here."""
    return {"unit": UNIT, "dice": DICE} if path is None else json.loads(path.read_text())


def over(table: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`table` with `own` in place of its entries, dicts within dicts."""
    return table | {
        key: over(table.get(key, {}), value) if isinstance(value, dict) else value for key, value in own.items()
    }


def forget() -> None:
    """Whatever the backend keeps of earlier calls: plans are made of the stored configurations."""
    for name, module in list(sys.modules.items()):
        if name.startswith("din_kernels.backends.triton"):
            for each in vars(module).values():
                if hasattr(each, "cache_clear"):
                    each.cache_clear()


@contextlib.contextmanager
def configured(chip: str, own: dict[str, Any]) -> Iterator[None]:
    """Within the block, `own` overrides what is stored for the unit on the chip."""
    table = chips.stored("local_activation")
    sizes = [size for of_chip in table.values() for size in of_chip.values() if isinstance(size, dict)]
    known = {key for size in sizes for key in size}
    for key in (key for of_size in own.values() for key in of_size):
        if key not in known:
            raise ValueError(f"a candidate must override one of {', '.join(sorted(known))}, got {key!r}")
    changed = table | {chip: over(table.get(chip, {}), own)}
    try:
        with mock.patch.object(chips, "stored", lambda op: changed):
            forget()
            yield
    finally:
        forget()


@contextlib.contextmanager
def launched(kernel: str, itemsize: int, own: dict[str, int]) -> Iterator[None]:
    """Within the block, Dice's kernel is launched with `own` in place of fields of its shape."""
    from din_kernels.backends.triton.dice import run

    shape = run.SHAPES[kernel, itemsize]._replace(**own)
    with mock.patch.dict(run.SHAPES, {(kernel, itemsize): shape}):
        yield


def search(deadline: float, tries: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """A row per candidate: its kernels' milliseconds, and those of what is stored right before; number 0 first."""
    chip = chips.chip(torch.device("cuda", torch.cuda.current_device()))
    number = 0
    every = [("unit", each) for each in tries.get("unit", [])] + [("dice", each) for each in tries.get("dice", [])]
    for kind, each in every:
        if time.monotonic() > deadline:
            return
        row = {"number": number, "kind": kind, **each}
        number += 1
        try:
            if kind == "unit":
                calls = gpu.variants(gpu.on_gpu(inputs_of(SHAPES[each["shape"]])), ["triton"])["triton"]
                call = calls[any("," in key for key in each["own"])]  # "folded, rows" is of a backward
                inside = configured(chip, {each["size"]: each["own"]})
            else:
                dtype = torch.bfloat16 if each["itemsize"] == 2 else torch.float32
                call = gpu_dice.variants(gpu_dice.SHAPES[0], dtype, ["triton"])["triton"]
                inside = launched(each["kernel"], each["itemsize"], each["own"])
            yield row | _times(call, inside)
        except Exception as error:  # too much shared memory, say
            yield row | {"skipped": gpu.reason_of(error)}


def _times(call, inside) -> dict[str, float]:
    stored = gpu_profile.kernels(call)["kernels_ms"]
    with inside:
        own = gpu_profile.kernels(call)["kernels_ms"]
    return {"kernels_ms": own, "stored_ms": stored}
