"""The table of what kernels cost: as Markdown, for a terminal, and against the one that is kept.

A row is a dict, one kernel of one call on one chip, with the keys of `tools/kernel_costs.py:_first`.
"""

from __future__ import annotations

from typing import Any

from machine_code import KINDS

MOST = 1.05  # times the kept count that a kernel may have

# --- tables -----------------------------------------------------------------------------------------------------------


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    kinds = [f"{row['kinds'][kind]:,.0f}" for kind in KINDS]
    bound = max(row["parts"], key=row["parts"].get)
    return [
        row["kernel"] + (f" x {row['launches']}" if row["launches"] > 1 else ""),
        f"{row['instructions']:,.0f}",
        f"{row['in_tiles']:,.0f}",
        *kinds,
        str(row["registers"]),
        f"{row['shared'] / 1024:.0f}",
        f"{row['resident_warps']}",
        f"{row['spills']} ({row['spills_in_tiles']})",
        f"{row['ms']:.3f}",
        bound,
    ]


COLUMNS = (
    "kernel",
    "a pair",
    "in tiles",
    *KINDS,
    "registers",
    "KB",
    "warps",
    "spills",
    "ms",
    "bound by",
)


def markdown(header: tuple[str, ...], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"] + [
        f"| {' | '.join(line)} |" for line in body
    ]


def totals(rows: list[dict[str, Any]]) -> list[list[str]]:
    """(chip, call, forward and backward: instructions a pair and ms) per call."""
    found = []
    for chip, call in dict.fromkeys((row["chip"], row["call"]) for row in rows):
        line = [f"{chip}: {call}"]
        for direction in ("forward", "backward"):
            own = [row for row in rows if (row["chip"], row["call"], row["pass"]) == (chip, call, direction)]
            line += [
                f"{sum(row[key] for row in own):{form}}" for key, form in (("instructions", ",.0f"), ("ms", ".3f"))
            ]
        found.append(line)
    return found


TOTALS = ("call", "forward, a pair", "forward, ms", "backward, a pair", "backward, ms")


INTRODUCTION = """\
Made by `make kernel-costs` with Triton {}, without a GPU. Instructions are counted in the machine code; times are
predicted by the model of `tools/gpu_model.py`, not measured. Instructions are thread instructions a pair of candidate
and behaviour, for Dice a row. *In tiles* are those in a loop within a loop; the columns behind it have all of them by
kind. *KB* is shared memory of a program, *warps* what a multiprocessor holds (0: it has less shared memory than a
program takes, and the time is that of one at once), *spills* instructions on local memory, in parentheses those in
tiles. [performance.md](../performance.md#what-a-kernel-costs) says how far counts and times are from measured ones."""


def page(rows: list[dict[str, Any]], version: str) -> str:
    """The tables as Markdown."""
    lines = [
        "# What the Triton kernels cost",
        "",
        INTRODUCTION.format(version),
        "",
        "## Totals",
        "",
        *markdown(TOTALS, totals(rows)),
    ]
    for chip, call in dict.fromkeys((row["chip"], row["call"]) for row in rows):
        for direction in ("forward", "backward"):
            own = [row for row in rows if (row["chip"], row["call"], row["pass"]) == (chip, call, direction)]
            if own:
                lines += ["", f"## {chip}: {call}, {direction}", "", *markdown(COLUMNS, [cells(row) for row in own])]
    return "\n".join(lines) + "\n"


def printed(rows: list[dict[str, Any]]) -> str:
    """The tables for a terminal."""
    lines: list[str] = []
    for chip, call in dict.fromkeys((row["chip"], row["call"]) for row in rows):
        own = [row for row in rows if (row["chip"], row["call"]) == (chip, call)]
        body = [[f"{row['pass']}: {first}", *rest] for row in own for first, *rest in [cells(row)]]
        lines += ["", f"{chip}, {call}", *aligned([list(COLUMNS), *body])]
    return "\n".join([*lines, "", *aligned([list(TOTALS), *totals(rows)])])


def aligned(table: list[list[str]]) -> list[str]:
    """Lines with columns of equal width; the first is flush left."""
    widths = [max(len(line[at]) for line in table) for at in range(len(table[0]))]
    return [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


# --- the check --------------------------------------------------------------------------------------------------------

REMAKE = "remake the table with `make kernel-costs`, and say in the commit what the instructions buy"


def faults(kept: dict[str, Any], rows: list[dict[str, Any]], version: str) -> list[str]:
    """Why the kept table is not that of these kernels."""
    if kept["triton"] != version:
        return [
            f"the kept table was made with Triton {kept['triton']}, and counts of {version} say nothing against it: "
            f"install triton=={kept['triton']}, or {REMAKE}"
        ]
    key = ("chip", "call", "pass", "kernel")
    known = {tuple(row[name] for name in key): row["instructions"] for row in kept["rows"]}
    found = {tuple(row[name] for name in key): row["instructions"] for row in rows}
    wrong = [f"{', '.join(each)} is not in the kept table: {REMAKE}" for each in found if each not in known]
    calls = {each[:2] for each in found}
    wrong += [
        f"{', '.join(each)} is in the kept table and no longer launched: {REMAKE}"
        for each in known
        if each[:2] in calls and each not in found
    ]
    for each in sorted(found.keys() & known.keys()):
        if found[each] > MOST * known[each]:
            wrong.append(
                f"{', '.join(each)} has {found[each]:,.0f} thread instructions a pair, more than {MOST:.2f} times "
                f"{known[each]:,.0f} of the kept table: {REMAKE}"
            )
    return wrong
