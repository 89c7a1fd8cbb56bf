"""How often the loops of a Triton kernel run, from its IR and the arguments of a launch, without running the kernel.

Triton's GPU IR (`kernel.asm["ttgir"]`) has the loops of the machine code, pipelined and peeled as they will be, with
their bounds as values. Few operations lead to a bound: program ids, integer arithmetic, loads of lengths and offsets.
Those alone are evaluated, with NumPy, program by program (at most PROGRAMS of them, evenly spaced); products,
activations and rows are never touched. So

    trips(ir, grid, arguments)  ->  the tree of loops, each with its trips in every program that was evaluated

and on the way what the loads and stores ask of each pointer and the multiply-adds of the products, by the trips of the
loops around them. What a bound depends on must be in the launch's arguments: what another kernel would have written
there is not.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from triton_ir import LOOPS, Region, Statement, has_loop, needed, parse

PROGRAMS = 768  # evaluated of a launch; a persistent kernel has fewer on every chip, 4 to 5 a multiprocessor


@dataclass(eq=False)
class SourceLoop:
    """A loop of the source and how often its body runs."""

    trips: np.ndarray  # [programs evaluated]
    inner: list[SourceLoop] = field(default_factory=list)


class Trips(NamedTuple):
    """What `trips` finds out about a launch."""

    loops: list[SourceLoop]  # the outermost ones
    programs: int  # of the launch
    evaluated: int
    requested: Counter[str]  # bytes that loads and stores ask for, by the name of the pointer
    products: Counter[str]  # floating-point operations of products on tensor cores, by the operands' dtype


# --- evaluating -------------------------------------------------------------------------------------------------------


class Pointer(NamedTuple):
    """Addresses: entries of a tensor's storage, counted from its first."""

    tensor: torch.Tensor
    offset: Any

    def load(self, mask: Any, other: Any) -> np.ndarray:
        """What lies there; `other`, or 0, where the mask is not set."""
        flat = self.tensor.as_strided((self._reach,), (1,)).numpy()
        offset = np.asarray(self.offset)
        inside = np.broadcast_to(True if mask is None else np.asarray(mask, bool), offset.shape)
        asked = offset[inside]
        if asked.size and not 0 <= asked.min() <= asked.max() < len(flat):
            raise ValueError(
                f"a loop's bound must depend on what is in the arguments; it is read at {asked.min()} to {asked.max()} "
                f"of {len(flat)} entries, an address that another kernel would have made"
            )
        values = flat[np.where(inside, offset, 0)]
        return np.where(inside, values, 0 if other is None else other)

    @property
    def _reach(self) -> int:
        return self.tensor.untyped_storage().nbytes() // self.tensor.element_size() - self.tensor.storage_offset()


def _shape(line: str) -> tuple[int, ...]:
    """Of the result: what the last tensor type says."""
    types = re.findall(r"tensor<((?:\d+x)*)", line)
    return tuple(int(size) for size in types[-1].split("x")[:-1]) if types else ()


def _attribute(line: str, name: str) -> int:
    return int(re.search(rf"{name} = (-?\d+)", line)[1])


def _constant(line: str) -> Any:
    text = re.match(r"arith.constant (?:dense<)?([^>:\s]+)", line)[1]
    value = {"true": True, "false": False}.get(text)
    if value is None:
        value = float(text) if re.search(r"[.eEx]", text) and not text.startswith("0x") else int(text, 0)
    return np.full(_shape(line), value)[()]


def _divide(a: Any, b: Any) -> Any:
    """Towards zero, as C and LLVM do."""
    return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(np.int64)


_COMPARE = {"eq": operator.eq, "ne": operator.ne}
_COMPARE |= {f"{sign}{name}": getattr(operator, name) for sign in "suo" for name in ("lt", "le", "gt", "ge")}
_COMPARE |= {"oeq": operator.eq, "une": operator.ne}


def _compare(line: str, a: Any, b: Any) -> Any:
    return _COMPARE[re.match(r"arith.cmp[if] (\w+),", line)[1]](a, b)


def _integer(value: Any) -> Any:
    return np.asarray(value).astype(np.int64)[()]


def _add_offset(pointer: Pointer, offset: Any) -> Pointer:
    return Pointer(pointer.tensor, pointer.offset + offset)


def _reshaped(change: Callable[[Any], Any], value: Any) -> Any:
    """`change` of an array, or of a pointer's offsets."""
    return Pointer(value.tensor, change(np.asarray(value.offset))) if isinstance(value, Pointer) else change(value)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "addi": operator.add,
    "subi": operator.sub,
    "muli": operator.mul,
    "divsi": _divide,
    "divui": _divide,
    "remsi": np.fmod,
    "remui": np.fmod,
    "ceildivsi": lambda a, b: -(-a // b),
    "floordivsi": operator.floordiv,
    "minsi": np.minimum,
    "minui": np.minimum,
    "maxsi": np.maximum,
    "maxui": np.maximum,
    "andi": operator.and_,
    "ori": operator.or_,
    "xori": operator.xor,
    "shli": np.left_shift,
    "shrsi": np.right_shift,
    "shrui": np.right_shift,
    "addf": operator.add,
    "subf": operator.sub,
    "mulf": operator.mul,
    "divf": operator.truediv,
    "maxnumf": np.maximum,
    "maximumf": np.maximum,
    "minnumf": np.minimum,
    "minimumf": np.minimum,
}
_REDUCE = {
    "addi": np.sum,
    "maxsi": np.max,
    "maxui": np.max,
    "minsi": np.min,
    "minui": np.min,
    "ori": np.any,
    "andi": np.all,
    "muli": np.prod,
}
_SAME = (
    "ttg.convert_layout",
    "arith.index_cast",
    "arith.trunci",
    "tt.bitcast",
    "arith.extf",
    "arith.truncf",
    "arith.bitcast",
)


class Evaluator:
    """Runs what leads to bounds, for one program at a time."""

    def __init__(self, function: Region, wanted: frozenset[str], grid: tuple[int, ...], arguments: Sequence[Any]):
        self.function, self.wanted, self.grid = function, wanted, grid
        self.arguments = dict(zip(function.arguments, arguments, strict=True))
        self.trips: Counter[Statement] = Counter()
        self.values: dict[str, Any] = {}
        self.program: tuple[int, ...] = (0, 0, 0)
        # Statements that make a wanted value or hold a loop, by region: the only ones that are looked at.
        self.relevant = {
            id(region): [each for each in region.body if has_loop(each) or wanted.intersection(each.results)]
            for region in [function, *(inner for each in function.walk() for inner in each.regions)]
        }

    def run(self, program: tuple[int, ...]) -> Counter[Statement]:
        """Trips of every loop in one program."""
        self.trips, self.values, self.program = Counter(), {}, program
        for name in self.wanted.intersection(self.arguments):
            value = self.arguments[name]
            self.values[name] = (
                Pointer(value, np.int64(0)) if isinstance(value, torch.Tensor) else np.asarray(value)[()]
            )
        self._region(self.function)
        return self.trips

    def _bind(self, names: list[str], values: list[Any]) -> None:
        for name, value in zip(names, values, strict=True):
            if name in self.wanted:
                self.values[name] = value

    def _get(self, names: list[str]) -> list[Any]:
        return [self.values.get(name) for name in names]

    def _region(self, region: Region) -> None:
        for statement in self.relevant[id(region)]:
            if statement.op == "scf.for":
                self._for(statement)
            elif statement.op == "scf.while":
                self._while(statement)
            elif statement.op == "scf.if":
                self._if(statement)
            else:
                self._bind(statement.results, [self._value(statement)])

    def _for(self, loop: Statement) -> None:
        body = loop.regions[0]
        low, high, step = (int(value) for value in self._get(loop.operands[:3]))
        count = max(0, -(-(high - low) // step))
        self.trips[loop] += count
        carried = self._get(loop.operands[3:])
        if self.relevant[id(body)] or self.wanted.intersection(loop.results):
            for at in range(low, high, step):
                self._bind(body.arguments, [at, *carried])
                self._region(body)
                if carried:
                    carried = self._get(body.last.operands)
        if loop.results:
            self._bind(loop.results, carried)

    def _while(self, loop: Statement) -> None:
        before, after = loop.regions
        carried = self._get(loop.operands)
        while True:
            self._bind(before.arguments, carried)
            self._region(before)
            goes_on, *passed = self._get(before.last.operands)
            if not goes_on:
                break
            self.trips[loop] += 1
            self._bind(after.arguments, passed)
            self._region(after)
            carried = self._get(after.last.operands)
        self._bind(loop.results, passed)

    def _if(self, branch: Statement) -> None:
        chosen = branch.regions[0 if self.values[branch.operands[0]] else 1 :][:1]
        for region in chosen:
            self._region(region)
            if branch.results:
                self._bind(branch.results, self._get(region.last.operands))

    def _value(self, statement: Statement) -> Any:
        op, line, values = statement.op, statement.line, self._get(statement.operands)
        dialect, _, name = op.partition(".")
        if dialect == "arith" and name in _BINARY:
            return _BINARY[name](*values)
        if op in _SAME:
            return values[0]
        if op in _OPERATIONS:
            return _OPERATIONS[op](statement, *values)
        if op in ("tt.get_program_id", "tt.get_num_programs"):
            axis = "xyz".index(line.split()[1])
            return np.int64((self.program if op == "tt.get_program_id" else self.grid)[axis])
        # Each result once a program: what a loop draws depends on how fast other programs are.
        if op == "tt.atomic_rmw" and line.split()[1] == "add," and not self.values.keys() & set(statement.results):
            return self._ticket(*values)
        raise ValueError(f"a loop's bound depends on {op}, which tools/loop_trips.py does not evaluate: {line}")

    def _ticket(self, counter: Pointer, added: Any, mask: Any) -> Any:
        """What a program finds in a counter to which each program adds: they come in the order of their numbers."""
        (x, y, z), (width, height, _) = self.program, self.grid
        return counter.load(mask, None) + added * (x + width * (y + height * z))


def _extended(statement: Statement, value: Any) -> Any:
    signed = statement.op == "arith.extsi" and np.asarray(value).dtype == bool
    return -_integer(value) if signed else _integer(value)


def _reduced(statement: Statement, value: Any) -> Any:
    combine = statement.regions[0].body[0].op.partition(".")[2]
    return _REDUCE[combine](value, axis=_attribute(statement.line, "axis"))


def _scanned(statement: Statement, value: Any) -> Any:
    return np.cumsum(value, axis=_attribute(statement.line, "axis"))


def _transposed(statement: Statement, value: Any) -> Any:
    order = [int(each) for each in re.search(r"i32: ([\d, ]+)>", statement.line)[1].split(",")]
    return _reshaped(lambda array: np.transpose(array, order), value)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "arith.constant": lambda statement: _constant(statement.line),
    "arith.cmpi": lambda statement, a, b: _compare(statement.line, a, b),
    "arith.cmpf": lambda statement, a, b: _compare(statement.line, a, b),
    "arith.select": lambda statement, choice, a, b: np.where(choice, a, b)[()],
    "arith.extsi": _extended,
    "arith.extui": _extended,
    "arith.sitofp": lambda statement, a: np.asarray(a, float)[()],
    "arith.uitofp": lambda statement, a: np.asarray(a, float)[()],
    "arith.fptosi": lambda statement, a: _integer(a),
    "tt.make_range": lambda statement: np.arange(
        _attribute(statement.line, "start"), _attribute(statement.line, "end"), dtype=np.int64
    ),
    "tt.splat": lambda statement, a: _reshaped(lambda x: np.full(_shape(statement.line), x), a),
    "tt.broadcast": lambda statement, a: _reshaped(lambda x: np.broadcast_to(x, _shape(statement.line)), a),
    "tt.reshape": lambda statement, a: _reshaped(lambda x: np.reshape(x, _shape(statement.line)), a),
    "tt.expand_dims": lambda statement, a: _reshaped(
        lambda x: np.expand_dims(x, _attribute(statement.line, "axis")), a
    ),
    "tt.trans": _transposed,
    "tt.addptr": lambda statement, pointer, offset: _add_offset(pointer, offset),
    "tt.load": lambda statement, pointer, mask=None, other=None: pointer.load(mask, other),
    "tt.reduce": _reduced,
    "tt.scan": _scanned,
}


# --- a launch ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _parsed(ir: str) -> tuple[Region, frozenset[str]]:
    function = parse(ir)
    return function, frozenset(needed(function))


def trips(ir: str, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> Trips:
    """Trips of the loops of a launch of `grid` programs.

    Args:
        ir: of the compiled kernel.
        grid: programs in x, y and z.
        arguments: tensors and numbers by name, in the order in which the kernel takes them; none that is a constant
            of the compiled kernel.

    Raises:
        ValueError: there are more or fewer arguments than the kernel takes, or a bound depends on an operation that is
            not evaluated.
    """
    function, wanted = _parsed(ir)
    if len(function.arguments) != len(arguments):
        raise ValueError(f"arguments must be those of the kernel ({function.arguments}), got {list(arguments)}")
    x, y, z = grid = (*grid, 1, 1)[:3]
    programs = x * y * z
    chosen = range(programs) if programs <= PROGRAMS else [at * programs // PROGRAMS for at in range(PROGRAMS)]
    evaluator = Evaluator(function, wanted, grid, list(arguments.values()))
    runs = [evaluator.run((at % x, at // x % y, at // (x * y))) for at in chosen]
    loops = {each: SourceLoop(np.array([run[each] for run in runs])) for each in function.walk() if each.op in LOOPS}
    launch = _Launch(loops, programs / max(len(chosen), 1), dict(zip(function.arguments, arguments, strict=True)))
    return Trips(launch.tree(function, programs), programs, len(chosen), launch.requested, launch.products)


_ACCESS = ("tt.load", "tt.store", "tt.atomic", "tt.descriptor", "ttg.async_copy_global", "ttg.async_tma", "amdg.")
_PRODUCT = ("tt.dot", "ttng.warp_group_dot", "ttng.tc_gen5_mma")  # and no wait for one
_TENSOR = re.compile(r"(?:tensor|memdesc)<((?:\d+x)+)(?:!tt\.ptr<)?([a-z]+)(\d+)")


class _Launch:
    """Adds up what a launch does, following the loops whose trips are known."""

    def __init__(self, loops: dict[Statement, SourceLoop], scale: float, pointers: dict[str, str]):
        self.loops, self.scale = loops, scale  # programs per evaluated program
        self.pointers = pointers  # values that are addresses within an argument: its name
        self.requested: Counter[str] = Counter()
        self.products: Counter[str] = Counter()

    def tree(self, region: Region, runs: float) -> list[SourceLoop]:
        """The loops directly in a region that runs `runs` times."""
        found: list[SourceLoop] = []
        for statement in region.body:
            self._count(statement, runs)
            if statement.op in LOOPS:
                loop = self.loops[statement]
                for each in statement.regions:
                    loop.inner += self.tree(each, self.scale * float(loop.trips.sum()))
                found.append(loop)
            elif statement.op == "scf.if":
                for each in statement.regions:
                    found += self.tree(each, runs)
        return found

    def _count(self, statement: Statement, runs: float) -> None:
        line = statement.line
        pointer = next((self.pointers[name] for name in statement.operands if name in self.pointers), None)
        if pointer is not None and statement.op.startswith(_ACCESS):
            self.requested[pointer] += round(runs * _bytes(line))
        elif pointer is not None and "tt.ptr" in line:
            self.pointers |= dict.fromkeys(statement.results, pointer)
        if statement.op in _PRODUCT:
            (rows, dtype, bits), (columns, *_) = _TENSOR.findall(line)[:2]
            m, k = (int(size) for size in rows.split("x")[-3:-1])
            n = int(columns.split("x")[-2])
            # fp32 operands are read as tf32 where the instruction is one of a tensor core's.
            self.products[dtype + bits] += round(runs * 2 * m * n * k)


def _bytes(line: str) -> int:
    """Bytes of the value that a load gives or a store takes."""
    types = _TENSOR.findall(line) or [("", *each) for each in re.findall(r"!tt\.ptr<([a-z]+)(\d+)", line)]
    sizes, _, bits = types[0] if types else ("", "", "0")
    return math.prod(int(size) for size in sizes.split("x")[:-1]) * int(bits) // 8
