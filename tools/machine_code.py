"""NVIDIA machine code as cuobjdump prints it: instructions by kind, basic blocks, loops.

    0x0000  prologue                 blocks begin at branch targets and after branches;
    0x0c80  +-> once a candidate     a loop is a jump back to a block that dominates it (a natural loop);
    0x3640  |  +-> once a tile       loops nest as they do in the source;
    0x7c00  |  +-- @!P4 BRA 0x3640   `Code.depth` is the number of loops around a block.
    0x7ea0  +---- BRA 0xc80
    0x7eb0  EXIT

Only what runs in ordinary operation is in a loop. What is reached by BRA.DIV alone (a warp that diverged where none is
expected) or by a CALL that returns (the slow path of a division) is `rare`. On sm_80 a far jump is a CALL to code that
never returns.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction: `@!P4 BRA 0x3640` has guard "!P4", name "BRA" and operands "0x3640"."""

    address: int
    guard: str
    name: str
    operands: str

    @property
    def kind(self) -> str:
        """A key of KINDS."""
        return _kind(self.name)

    @property
    def target(self) -> int | None:
        """Where a branch or a call goes, if it says so."""
        found = re.findall(r"0x([0-9a-f]+)", self.operands)
        return int(found[-1], 16) if found else None

    @property
    def shared_bytes(self) -> int:
        """Bytes that a warp moves from or to shared memory; less than 4 of a thread take as long as 4."""
        if self.kind != "shared":
            return 0
        wide = re.search(r"\.(\d+)$", self.name)  # bits of a thread, or 8 x 8 matrices of 2 bytes: 128 bytes each
        if self.name.startswith(("LDSM", "STSM")):
            return 128 * int(wide[1] if wide else 1)
        return 4 * max(32, int(wide[1] if wide else 32))


# Kind: what the names of its instructions match. The first that matches counts; the rest are integer arithmetic, moves
# and predicates. IMAD.U32 and PRMT are how 16-bit numbers become fp32 ones; IMAD.MOV is a move.
KINDS = {
    "tensor": r"(HMMA|HGMMA|IMMA|DMMA|QGMMA|UTC\w*MMA|WARPGROUP)\b",
    "special": r"MUFU\b",
    "local": r"(LDL|STL)\b",
    "shared": r"(LDS|STS|LDSM|STSM|ATOMS|LDTM|STTM|UTCCP)\b",
    "global": r"(LDG|STG|LD|ST|LDGSTS|ATOM|ATOMG|RED|REDG|UBLKCP|UTMA\w*)\b",
    "shuffle": r"(SHFL|REDUX|CREDUX|VOTE|VOTEU|MATCH)\b",
    "barrier": r"(BAR|SYNCS|WARPSYNC|DEPBAR|LDGDEPBAR|UTCBAR|MEMBAR|FENCE|ARRIVES|ERRBAR|NANOSLEEP|CCTL|BSYNC|BSSY)\b",
    "branch": r"(BRA|BRX|JMP|CALL|RET|EXIT|BREAK|JMX)\b",
    "conversion": r"(F2F|F2FP|F2I|I2F|I2FP|F2IP|PRMT|IMAD\.U32|UPRMT|FRND)\b",
    "float": r"(FFMA\w*|FADD\w*|FMUL\w*|FMNMX\w*|FSEL|FSETP|FSET|FSWZADD|FCHK|HFMA2|HADD2|HMUL2|HSETP2|HMNMX2|D\w+)\b",
    "integer": r"",
}
_MATCHERS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
_KNOWN: dict[str, str] = {}


def _kind(name: str) -> str:
    if name not in _KNOWN:
        _KNOWN[name] = next(kind for kind, matcher in _MATCHERS.items() if matcher.match(name))
    return _KNOWN[name]


@dataclass(eq=False)
class Block:
    """Instructions that run one after the other."""

    instructions: list[Instruction]
    next: list[Block] = field(default_factory=list, repr=False)
    rare: bool = False

    @property
    def address(self) -> int:
        return self.instructions[0].address


@dataclass(eq=False)
class Loop:
    """A natural loop; `blocks` are all of them, those of inner loops too."""

    header: Block
    blocks: set[Block] = field(repr=False)
    inner: list[Loop] = field(default_factory=list)  # by address

    @property
    def own(self) -> set[Block]:
        """Blocks in no inner loop but those that wait for a barrier."""
        return self.blocks - set().union(*(loop.blocks for loop in self.inner if not loop.waits))

    @property
    def waits(self) -> bool:
        """Whether it only waits for a barrier: a few instructions, one of them a try, and no loop of the source."""
        code = [each for block in self.blocks for each in block.instructions]
        return len(code) <= 24 and not self.inner and any(each.name.startswith(("SYNCS", "NANOSLEEP")) for each in code)


@dataclass
class Code:
    """A kernel's control-flow graph."""

    name: str
    blocks: list[Block]
    loops: list[Loop]  # the outermost ones, by address

    def depth(self, block: Block) -> int:
        """Loops around a block, not counting those that wait for a barrier."""
        depth, loops = 0, self.loops
        while inside := [loop for loop in loops if block in loop.blocks and not loop.waits]:
            depth, loops = depth + 1, inside[0].inner
        return depth


_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[T\d]+)\s+)?([A-Z][\w.]*)\s*((?:[^;/]|/(?!\*))*?)\s*;")


def functions(sass: str) -> dict[str, Code]:
    """The kernels in what `cuobjdump --dump-sass` prints."""
    pieces = _FUNCTION.split(sass)[1:]
    return {name: parsed(name, text) for name, text in zip(pieces[::2], pieces[1::2], strict=True)}


def parsed(name: str, listing: str) -> Code:
    """The graph of one kernel's listing.

    Raises:
        ValueError: no instruction in the listing.
    """
    code = [Instruction(int(at, 16), guard, op, rest) for at, guard, op, rest in _INSTRUCTION.findall(listing)]
    if not code:
        raise ValueError(f"{name}: the listing must hold instructions as cuobjdump prints them, got none")
    blocks = _blocks(code)
    usual = _reached(blocks[0])
    for block in blocks:
        block.rare = block not in usual
    dominators = _dominators(blocks[0], [block for block in blocks if not block.rare])
    return Code(name, blocks, _nested(_natural_loops(dominators)))


def _ends(instruction: Instruction) -> bool:
    return instruction.name.split(".")[0] in ("BRA", "BRX", "JMP", "JMX", "EXIT", "RET", "CALL", "BREAK")


def _blocks(code: list[Instruction]) -> list[Block]:
    """Basic blocks in order, with edges. A call goes on behind itself where it returns."""
    starts = {code[0].address} | {each.target for each in code if _ends(each)}
    starts |= {after.address for each, after in zip(code, code[1:], strict=False) if _ends(each)}
    blocks: list[Block] = []
    for each in code:
        if each.address in starts:
            blocks.append(Block([]))
        blocks[-1].instructions.append(each)
    by_address = {block.address: block for block in blocks}
    calls = []
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        last = block.instructions[-1]
        root = last.name.split(".")[0]
        jumps = root in ("BRA", "JMP") and ".DIV" not in last.name
        # BRA.U UP0 and BRA P1 carry their condition as an operand.
        conditional = last.guard not in ("", "PT", "UPT") or re.match(r"!?U?P\d", last.operands) is not None
        falls_through = not (jumps or root in ("EXIT", "RET", "BRX", "JMX")) or conditional
        target = by_address.get(last.target)
        if jumps and target is not None:
            block.next.append(target)
        if root == "CALL" and target is not None:
            calls.append((block, target, conditional))
        if falls_through and after is not None and after not in block.next:
            block.next.append(after)
    for block, target, conditional in calls:
        if not any(each.instructions[-1].name.startswith("RET") for each in _reached(target)):
            block.next = [target, *block.next] if conditional else [target]
    _follow_tables(blocks)
    return blocks


def _follow_tables(blocks: list[Block]) -> None:
    """Edges of BRX, which jumps by a table that the listing does not show: to each piece of code that is not reached
    otherwise."""
    ends = [block.instructions[-1] for block in blocks]
    tables = [block for block, end in zip(blocks, ends, strict=True) if end.name.startswith(("BRX", "JMX"))]
    rare = {end.target for end in ends if end.name.startswith(("CALL", "BRA.DIV"))}
    known = _reached(blocks[0])
    for block in blocks if tables else ():
        if block not in known:
            known |= _reached(block)
            first = block.instructions[0]
            # Behind the last instruction there are a jump to itself and NOPs.
            if first.address not in rare and first.name != "NOP" and first.target != first.address:
                for table in tables:
                    table.next.append(block)


def _reached(start: Block) -> set[Block]:
    """The blocks to which a way leads from `start`, itself included."""
    found, waiting = set(), [start]
    while waiting:
        block = waiting.pop()
        if block not in found:
            found.add(block)
            waiting += block.next
    return found


def _dominators(entry: Block, blocks: list[Block]) -> dict[Block, set[Block]]:
    """The blocks through which every way to a block leads, itself included."""
    before: dict[Block, list[Block]] = {block: [] for block in blocks}
    for block in blocks:
        for after in block.next:
            before[after].append(block)
    every = set(blocks)
    found = {block: {block} if block is entry else every for block in blocks}
    changed = True
    while changed:
        changed = False
        for block in blocks:
            if block is not entry:
                new = {block} | set.intersection(*(found[each] for each in before[block]))
                changed |= new != found[block]
                found[block] = new
    return found


def _natural_loops(dominators: dict[Block, set[Block]]) -> list[Loop]:
    """A loop per header: the blocks from which a jump back to it is reached without passing it."""
    before: dict[Block, list[Block]] = {block: [] for block in dominators}
    for block in dominators:
        for after in block.next:
            before[after].append(block)
    loops: dict[Block, set[Block]] = {}
    for block in dominators:
        for header in block.next:
            if header in dominators[block]:
                body, waiting = loops.setdefault(header, {header}), [block]
                while waiting:
                    each = waiting.pop()
                    if each not in body:
                        body.add(each)
                        waiting += before[each]
    return [Loop(header, body) for header, body in loops.items()]


def _nested(loops: list[Loop]) -> list[Loop]:
    """The outermost loops, each with those directly inside it."""
    by_size = sorted(loops, key=lambda loop: len(loop.blocks))
    outermost = []
    for at, loop in enumerate(by_size):
        around = next((other for other in by_size[at + 1 :] if loop.blocks < other.blocks), None)
        (outermost if around is None else around.inner).append(loop)
    for loop in loops:
        loop.inner.sort(key=lambda each: each.header.address)
    return sorted(outermost, key=lambda loop: loop.header.address)


def kinds_of(blocks: set[Block] | list[Block]) -> Counter[str]:
    """Instructions of the blocks by kind."""
    return Counter(each.kind for block in blocks for each in block.instructions)


def spills(code: Code) -> tuple[int, int]:
    """Loads and stores of local memory: in all, and in a loop within a loop, which runs once a tile."""
    found = [block for block in code.blocks for each in block.instructions if each.kind == "local"]
    return len(found), sum(code.depth(block) > 1 for block in found)
