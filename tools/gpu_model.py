"""Limits and rates of GPUs, how many warps of a kernel a multiprocessor holds, and a model of the time of a launch.

The time of a launch is the longest of what its parts would take alone, beside LAUNCH:

    issue        warp instructions / instructions a cycle, which depend on the resident warps (below)
    special      tanh, exp, reciprocals: 16 lanes a cycle
    shared       shared memory: 128 bytes a cycle, CONFLICTS times as long
    products     floating-point operations at the chip's rate
    memory       bytes that must come from or go to DRAM, at the rate of a copy
    longest      the program with most work, alone on its multiprocessor with those that start together with it

**Instructions a cycle.** A multiprocessor has four schedulers, each with W / 4 of its W resident warps. A warp is ready
in a share r of the cycles, so a scheduler issues in 1 - (1 - r)^(W / 4) of them. 1 / r is the mean number of cycles
from one instruction of a warp to its next: the sum of STALLS over its instructions by kind, divided by their number.

STALLS and CONFLICTS are round numbers, chosen by what an H200 took for the kernels of one commit and of a prototype
(docs/performance.md has the comparison). Predictions rank kernels and show where time goes; they are no measurement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Chip(NamedTuple):
    """Limits (CUDA C++ programming guide, "Technical specifications per compute capability") and rates of a chip."""

    capability: int
    multiprocessors: int
    shared_per_block: int  # bytes
    shared_per_multiprocessor: int
    warps: int  # that a multiprocessor holds
    blocks: int
    gigahertz: float  # as sustained under load
    terabytes: float  # a second, of a copy
    products: int  # bf16 floating-point operations a cycle and multiprocessor; tf32 has half of it
    registers: int = 65_536


CHIPS = {
    # A100, RTX 4090, H200 (its copy as measured), B200.
    "sm_80": Chip(80, 108, 163 * 1024, 164 * 1024, 64, 32, 1.41, 1.7, 2048),
    "sm_89": Chip(89, 128, 99 * 1024, 100 * 1024, 48, 24, 2.5, 0.9, 512),
    "sm_90": Chip(90, 132, 227 * 1024, 228 * 1024, 64, 32, 1.75, 4.3, 4096),
    "sm_100": Chip(100, 148, 227 * 1024, 228 * 1024, 64, 32, 1.8, 7.0, 8192),
}

SCHEDULERS = 4
SPECIAL_LANES = 16  # a cycle and multiprocessor
SHARED_BYTES = 128  # a cycle and multiprocessor
CONFLICTS = 3  # cycles of shared memory for one of an access without conflicts: fp32 products took 2.9 to 4.6
LAUNCH = 0.002  # ms, of a kernel in a CUDA graph
REGISTER_UNIT = 256  # registers are given to a warp in such portions
SYSTEM_SHARED = 1024  # bytes of shared memory of every block that are the system's


def resident_blocks(chip: Chip, registers: int, shared: int, warps: int) -> int:
    """Blocks of `warps` warps that run at once on a multiprocessor.

    Args:
        registers: of a thread.
        shared: bytes of shared memory that a block asks for.
    """
    of_warp = math.ceil(registers * 32 / REGISTER_UNIT) * REGISTER_UNIT
    # Each scheduler has a quarter of the registers, and a warp lies in one quarter.
    by_registers = chip.registers // SCHEDULERS // of_warp * SCHEDULERS // warps
    by_shared = chip.shared_per_multiprocessor // (shared + SYSTEM_SHARED)
    return min(by_registers, by_shared, chip.warps // warps, chip.blocks)


class Work(NamedTuple):
    """What a launch does."""

    instructions: Mapping[str, float]  # warp instructions by kind
    shared_bytes: float  # that go through shared memory
    products: Mapping[str, float]  # floating-point operations on tensor cores by dtype
    memory: float  # bytes of DRAM
    programs: int
    longest: float  # work of the largest program over that of an average one
    warps: int  # of a program
    resident: int  # programs that a multiprocessor holds


# Cycles from an instruction of a warp to its next, by kind of the first.
STALLS = {
    "float": 4.0,
    "integer": 4.0,
    "conversion": 4.0,
    "branch": 8.0,
    "special": 6.0,
    "shuffle": 8.0,
    "shared": 8.0,
    "global": 20.0,
    "local": 20.0,
    "barrier": 20.0,
    "tensor": 20.0,
}


def instructions_per_cycle(instructions: Mapping[str, float], warps: float) -> float:
    """Of a multiprocessor with `warps` resident warps that run this mix of instructions."""
    total = sum(instructions.values())
    if not total:
        return float(SCHEDULERS)
    ready = total / sum(STALLS[kind] * count for kind, count in instructions.items())
    schedulers = min(SCHEDULERS, warps)
    return schedulers * (1 - (1 - ready) ** (warps / schedulers))


def times(chip: Chip, work: Work) -> dict[str, float]:
    """Milliseconds of each part of a launch alone."""
    total = sum(work.instructions.values())
    per_ms = chip.gigahertz * 1e6  # cycles
    busy = min(chip.multiprocessors, work.programs)  # multiprocessors with work
    together = min(work.resident, math.ceil(work.programs / chip.multiprocessors))
    rate = instructions_per_cycle(work.instructions, together * work.warps)
    of_program = total / work.programs
    alone = instructions_per_cycle(work.instructions, work.warps * together) / together
    product_cycles = sum(
        count / (chip.products / (2 if dtype == "f32" else 1)) for dtype, count in work.products.items()
    )
    return {
        "issue": total / busy / rate / per_ms,
        "special": work.instructions.get("special", 0) * 32 / SPECIAL_LANES / busy / per_ms,
        "shared": work.shared_bytes / SHARED_BYTES * CONFLICTS / busy / per_ms,
        "products": product_cycles / busy / per_ms,
        "memory": work.memory / (chip.terabytes * 1e9),
        "longest": of_program * work.longest / alone / per_ms,
    }
