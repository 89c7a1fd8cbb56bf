"""Triton's GPU IR as a tree of statements, and which of its values the bounds of loops depend on.

A statement is one operation with the names of its results and operands; loops (scf.for, scf.while), branches (scf.if)
and reductions have regions of statements. Only what tools/loop_trips.py needs is understood: names, not types.
"""

from __future__ import annotations

import re
from collections import Counter
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


class _Names:
    """Values by name, region by region.

    A name holds up to the end of its region, and the printer gives it again to a value of another one. Here each value
    has a name of its own: the one that is printed, for later values with their number behind it.
    """

    def __init__(self) -> None:
        self.scopes: list[dict[str, str]] = [{}]
        self._given: Counter[str] = Counter()

    def define(self, name: str) -> str:
        """A new value, in the innermost region."""
        self._given[name] += 1
        number = self._given[name]
        self.scopes[-1][name] = name if number == 1 else f"{name}'{number}"
        return self.scopes[-1][name]

    def find(self, name: str) -> str:
        """The value of that name in the innermost region that has one."""
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)


def parse(ir: str) -> Region:
    """The body of the kernel; its arguments are the launch's pointers and numbers by name."""
    function, names = Region(), _Names()
    open_regions = [function]
    for raw in ir.splitlines():
        line = re.sub(r" loc\([^()]*(?:\([^()]*\))*[^()]*\)", "", raw).strip()
        if line.startswith("tt.func"):
            function.arguments = [names.define(name) for name in re.findall(r"(%[\w.$-]+):", line)]
        elif line.startswith("^bb") or line.startswith("} do {") or line.startswith("} else {"):
            if line.startswith("}"):
                _close(open_regions, names)
                _open(open_regions, names)
            elif len(open_regions) > 1:  # blocks of the function itself are those behind an early return
                open_regions[-1].arguments = [names.define(name) for name in re.findall(r"(%[\w.$-]+):", line)]
        elif line.startswith("}"):
            if len(open_regions) > 1:
                _close(open_regions, names)
        elif line and not line.startswith(("#", "module", "//")):
            statement, inner = _statement(line, names)
            open_regions[-1].body.append(statement)
            if line.endswith("{"):
                _open(open_regions, names)
                open_regions[-1].arguments = [names.define(name) for name in inner]
    return function


def _open(open_regions: list[Region], names: _Names) -> None:
    """The next region of the last statement: after then comes else, after the condition of a while its body."""
    owner = open_regions[-1].body[-1]
    owner.regions.append(Region())
    open_regions.append(owner.regions[-1])
    names.scopes.append({})


def _close(open_regions: list[Region], names: _Names) -> None:
    open_regions.pop()
    names.scopes.pop()


def _statement(line: str, names: _Names) -> tuple[Statement, list[str]]:
    """A line's statement, and the names that it gives to a loop's variable and to what the loop carries."""
    assigned = _ASSIGNED.match(line)
    results, rest = [], line
    if assigned:
        name, count, rest = assigned.groups()
        results = [name] if count is None else [f"{name}#{at}" for at in range(int(count))]
    op = re.match(r'"?([\w.]+)', rest)
    statement = Statement([], op[1] if op else "", re.findall(_NAME, re.split(r" : |-> ", rest)[0]), rest)
    inner: list[str] = []
    pairs = re.findall(rf"({_NAME}) = ({_NAME})", rest)
    if statement.op == "scf.for":
        high, step = re.search(rf" to ({_NAME}) step ({_NAME})", rest).groups()
        inner, (low, *carried) = (list(each) for each in zip(*pairs, strict=True))
        statement.operands = [low, high, step, *carried]
    elif statement.op == "scf.while":
        inner, statement.operands = ([pair[at] for pair in pairs] for at in (0, 1))
    # Operands are those before the statement: a result may have the name of one.
    statement.operands = [names.find(name) for name in statement.operands]
    statement.results = [names.define(name) for name in results]
    return statement, inner


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
