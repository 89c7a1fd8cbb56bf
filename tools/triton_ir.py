"""Triton's GPU IR as a tree of statements, and which of its values the bounds of loops depend on.

A statement is one operation with the names of its results and operands; loops (scf.for, scf.while), branches (scf.if)
and reductions have regions of statements. Only what tools/loop_trips.py needs is understood: names, not types.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

LOOPS = ("scf.for", "scf.while")


@dataclass(eq=False)
class Statement:
    """One operation: its results' names, its name, operands by name, the line, and its regions."""

    results: list[str]
    op: str
    operands: list[str]
    line: str
    regions: list[Region] = field(default_factory=list)


@dataclass(eq=False)
class Region:
    """The body of a loop, of a branch, or of the function."""

    arguments: list[str] = field(default_factory=list)
    body: list[Statement] = field(default_factory=list)

    def walk(self) -> Iterator[Statement]:
        """All statements, those of inner regions after the one that holds them."""
        for statement in self.body:
            yield statement
            for region in statement.regions:
                yield from region.walk()

    @property
    def last(self) -> Statement:
        """scf.yield or scf.condition."""
        return self.body[-1]


# --- reading the IR ---------------------------------------------------------------------------------------------------

_NAME = r"%[\w.$-]+(?:#\d+)?"
_ASSIGNED = re.compile(r"^(%[\w.$-]+)(?::(\d+))? = (.*)$")


def parse(ir: str) -> Region:
    """The body of the kernel; its arguments are the launch's pointers and numbers by name."""
    function = Region()
    open_regions = [function]
    for raw in ir.splitlines():
        line = re.sub(r" loc\([^()]*(?:\([^()]*\))*[^()]*\)", "", raw).strip()
        if line.startswith("tt.func"):
            function.arguments = re.findall(r"(%[\w.$-]+):", line)
        elif line.startswith("^bb") or line.startswith("} do {") or line.startswith("} else {"):
            if line.startswith("}"):
                _next_region(open_regions)
            elif len(open_regions) > 1:  # blocks of the function itself are those behind an early return
                open_regions[-1].arguments = re.findall(r"(%[\w.$-]+):", line)
        elif line.startswith("}"):
            if len(open_regions) > 1:
                open_regions.pop()
        elif line and not line.startswith(("#", "module", "//")):
            statement = _statement(line)
            open_regions[-1].body.append(statement)
            if line.endswith("{"):
                statement.regions.append(Region())
                open_regions.append(statement.regions[-1])
                _bind_arguments(statement)
    return function


def _next_region(open_regions: list[Region]) -> None:
    """Else after then; the body of a while after its condition."""
    open_regions.pop()
    owner = open_regions[-1].body[-1]
    owner.regions.append(Region())
    open_regions.append(owner.regions[-1])


def _statement(line: str) -> Statement:
    assigned = _ASSIGNED.match(line)
    results, rest = [], line
    if assigned:
        name, count, rest = assigned.groups()
        results = [name] if count is None else [f"{name}#{at}" for at in range(int(count))]
    op = re.match(r'"?([\w.]+)', rest)
    values = re.split(r" : |-> ", rest)[0]
    return Statement(results, op[1] if op else "", re.findall(_NAME, values), rest)


def _bind_arguments(statement: Statement) -> None:
    """Names that a loop's line gives to its variable and to what it carries, and the operands without them."""
    pairs = re.findall(rf"({_NAME}) = ({_NAME})", statement.line)
    if statement.op == "scf.for":
        (variable, low), carried = pairs[0], pairs[1:]
        high, step = re.search(rf" to ({_NAME}) step ({_NAME})", statement.line).groups()
        statement.regions[0].arguments = [variable, *(name for name, _ in carried)]
        statement.operands = [low, high, step, *(value for _, value in carried)]
    elif statement.op == "scf.while":
        statement.regions[0].arguments = [name for name, _ in pairs]
        statement.operands = [value for _, value in pairs]


# --- what leads to a bound --------------------------------------------------------------------------------------------


def has_loop(statement: Statement) -> bool:
    return statement.op in LOOPS or any(has_loop(each) for region in statement.regions for each in region.body)


def _links(statement: Statement) -> list[tuple[str, str]]:
    """(value, what it is made of), for the values that cross the border of a loop or a branch."""
    regions, links = statement.regions, []
    if statement.op == "scf.for":
        body, first = regions[0], statement.operands[3:]
        yields = body.last.operands if body.last.op == "scf.yield" else []
        for result, argument, start, end in zip(statement.results, body.arguments[1:], first, yields, strict=True):
            links += [(result, argument), (argument, start), (argument, end)]
    elif statement.op == "scf.while":
        before, after = regions
        for argument, start, end in zip(before.arguments, statement.operands, after.last.operands, strict=True):
            links += [(argument, start), (argument, end)]
        for result, argument, passed in zip(statement.results, after.arguments, before.last.operands[1:], strict=True):
            links += [(result, passed), (argument, passed)]
    elif statement.op == "scf.if":
        for region in regions:
            ends = region.last.operands if region.body and region.last.op == "scf.yield" else []
            links += list(zip(statement.results, ends, strict=False))
        links += [(result, statement.operands[0]) for result in statement.results]
    else:
        links = [(result, operand) for result in statement.results for operand in statement.operands]
    return links


def needed(function: Region) -> set[str]:
    """The values that bounds of loops depend on."""
    made_of: dict[str, set[str]] = {}
    waiting: list[str] = []
    for statement in function.walk():
        for value, source in _links(statement):
            made_of.setdefault(value, set()).add(source)
        if statement.op == "scf.for":
            waiting += statement.operands[:3]
        elif statement.op == "scf.while":
            waiting.append(statement.regions[0].last.operands[0])
        elif statement.op == "scf.if" and has_loop(statement):
            waiting.append(statement.operands[0])
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += made_of.get(name, ())
    return found
