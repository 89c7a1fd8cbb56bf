"""What the launches need to know of a chip, and the configurations stored for it."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

import torch

from din_kernels.backends.triton import INTERPRETED

EXACT = "ieee" if torch.version.hip else "bf16x6"  # products of fp32 numbers as precise as fp32's own


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU. Interpreted, 2: enough for programs to loop and for results to be merged."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@functools.cache
def chip(device: torch.device) -> str:
    """The chip as configurations name it: "sm_90", "gfx942"; "default" off the GPU."""
    if device.type != "cuda":
        return "default"
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def most_rows(chip: str) -> int:
    """Rows that a tile may have. From 64 on Triton takes products of warp groups on Hopper, wgmma, with which runs of
    the same inputs differed on an H200 (docs/performance.md)."""
    return 32 if chip == "sm_90" else 128


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have. Interpreted, as on an H100; on AMD, whose compiler keeps other
    things there than local_activation/memory.py knows of, no limit."""
    if torch.version.hip:
        return 2**31
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if device.type == "cuda" else 232448


@functools.cache
def stored(op: str) -> dict[str, dict[str, Any]]:
    """Configurations of an op by chip."""
    return json.loads((files(__package__) / "configs" / f"{op}.json").read_text())


@functools.cache
def configuration(op: str, chip: str) -> dict[str, Any]:
    """The op's configuration on a chip: what is stored for it over the default."""
    default, own = stored(op)["default"], stored(op).get(chip)
    return default if chip == "default" or own is None else _over(default, own)


def _over(default: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return default | {
        key: _over(default.get(key, {}), value) if isinstance(value, dict) else value for key, value in own.items()
    }


def compiler_options(registers: int) -> dict[str, Any]:
    """For every launch of the unit's large kernels, of so many registers a thread at most. Left alone, ptxas aims at
    more programs per multiprocessor and spills for it (gpu_train on sm_80: 168 registers and 6 spills, where 210 hold
    all). No option of AMD's compiler."""
    return {} if torch.version.hip else {"maxnreg": registers}


@functools.cache
def fast_tanh(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tanh.approx serves: an instruction of NVIDIA's, its error below that of 16-bit storage."""
    return not INTERPRETED and torch.version.hip is None and dtype in (torch.bfloat16, torch.float16)


def dot_precision(dtype: torch.dtype) -> str:
    """How fp32 products are made, by torch.get_float32_matmul_precision(); 16-bit ones are exact either way.

    "highest" takes three TF32 products of each number's two parts, whose error is that of fp32, where the ordinary
    units take four times as long. AMD's compiler has no such form.
    """
    if dtype != torch.float32:
        return "ieee"
    if torch.get_float32_matmul_precision() == "highest":
        return EXACT
    return "tf32"
