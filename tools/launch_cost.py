"""What a launch of a Triton kernel costs: its machine code's instructions times the trips of their loops.

    machine code (machine_code.py)        Triton's IR (loop_trips.py)
    prologue          1 x programs        %0 ...
    +-- loop          trips of      <-->  scf.for %work      31.0 a program
    |   +-- loop      trips of      <-->    scf.for %t0      64.6 a program
    epilogue          1 x programs

Loops of both are matched by their nesting and order, never by name. A block that a branch may skip counts as always
executed: the count is an upper bound there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gpu_model
import loop_trips
import machine_code
import numpy as np
import torch
import triton_cubins
from gpu_model import Work
from loop_matching import matched, shown


class Launch(NamedTuple):
    """A launch as the host made it, with the kernel compiled for it."""

    name: str
    kernel: Any  # triton.compiler.CompiledKernel
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors and numbers that the compiled kernel takes, in its order


def launches(chip: str, call: Callable[[], Any]) -> list[Launch]:
    """Every launch of `call` on the chip, compiled and not run."""
    found = []

    def launch(run, kernel, args, options):
        made = run(kernel, *args, **options)
        given = dict(zip((param.name for param in kernel.params), args, strict=False)) | options
        arguments: dict[str, Any] = {}
        for param in kernel.params:
            if not param.is_constexpr:
                leaves = _leaves(param.name, given.get(param.name, param.default))
                # An integer 1 is a constant of the compiled kernel, unless it must not be.
                fixed = () if param.do_not_specialize else (1,)
                arguments |= {name: value for name, value in leaves if not (type(value) is int and value in fixed)}
        grid = options["grid"]
        grid = tuple(grid(given) if callable(grid) else grid)
        found.append(Launch(kernel.fn.__name__, made, grid, arguments))

    with triton_cubins.offline(chip, launch):
        call()
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Tensors and numbers of an argument by name; Triton takes tuples apart."""
    if isinstance(value, tuple):
        for key, each in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
            yield from _leaves(f"{name}.{key}", each)
    elif isinstance(value, torch.Tensor | int | float):
        yield name, value


class Cost(NamedTuple):
    """What a launch costs."""

    name: str
    key: str  # of the compiled kernel
    registers: int
    shared: int  # bytes of a program
    programs: int  # that a multiprocessor holds; 0 where it has less shared memory than one takes
    warps: int  # of a program
    in_tiles: Counter[str]  # warp instructions in loops within a loop, by kind
    work: Work
    spills: tuple[int, int]  # loads and stores of local memory: in all, in a loop within a loop


def cost(chip: gpu_model.Chip, launch: Launch) -> Cost:
    """Counts a launch."""
    used, code = triton_cubins.disassembled(launch.kernel)
    registers = used["REG"]
    warps, shared = launch.kernel.metadata.num_warps, launch.kernel.metadata.shared
    trips = loop_trips.trips(launch.kernel.asm["ttgir"], launch.grid, launch.arguments)
    resident = gpu_model.resident_blocks(chip, registers, shared, warps)
    kinds, in_tiles, shared_bytes = Counter(), Counter(), 0.0
    of_program = np.zeros(max(trips.evaluated, 1))
    for blocks, depth, runs in _executed(launch.name, code, trips):
        times = warps * trips.programs * float(runs.mean())
        for kind, number in machine_code.kinds_of(blocks).items():
            kinds[kind] += number * times
            in_tiles[kind] += number * times * (depth > 1)
        shared_bytes += times * sum(each.shared_bytes for block in blocks for each in block.instructions)
        of_program += runs * sum(len(block.instructions) for block in blocks)
    # Products of fp32 are those of tensor cores only where the machine code has any.
    products = trips.products if kinds["tensor"] else {}
    longest = float(of_program.max() / of_program.mean())
    memory = _memory(launch.arguments, trips.requested)
    work = Work(kinds, shared_bytes, products, memory, trips.programs, longest, warps, max(resident, 1))
    return Cost(
        launch.name, launch.kernel.hash, registers, shared, resident, warps, in_tiles, work, machine_code.spills(code)
    )


def _memory(arguments: Mapping[str, Any], requested: Mapping[str, int]) -> float:
    """Bytes of DRAM: what the launch asks of each tensor, and once where it asks more than there is."""
    return sum(min(arguments[name].nbytes, asked) for name, asked in requested.items())


Runs = tuple[set[machine_code.Block], int, np.ndarray]


def _executed(name: str, code: machine_code.Code, trips: loop_trips.Trips) -> Iterator[Runs]:
    """(blocks, loops around them, how often each program runs them)."""
    once = np.ones(max(trips.evaluated, 1))
    in_loops: set[machine_code.Block] = set().union(*(loop.blocks for loop in code.loops if not loop.waits))
    yield {block for block in code.blocks if not block.rare} - in_loops, 0, once
    pairs = matched(code.loops, trips.loops)
    if pairs is None:
        raise ValueError(
            f"{name}: the loops of the machine code, {shown(code.loops)}, must be those of its source, "
            f"{shown(trips.loops)}; tools/loop_matching.py says what is understood"
        )
    for loop, runs, depth in pairs:
        yield loop.own, depth, runs
