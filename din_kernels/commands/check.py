"""Holds every kernel installed on this machine to the reference: forward and all gradients.

Errors are taken against float64; a kernel may err at most twice as much as the reference does in the same dtype, plus a
floor (din_kernels.verification.FLOOR). Exit status 1 when a kernel exceeds it.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from din_kernels import backends, options, verification, verification_ops
from din_kernels.commands.console import wide_console
from din_kernels.verification import ACTIVATION_CASES, LAYOUTS

KERNELS = tuple(name for name in options.BACKENDS if name != "reference")


class Row(NamedTuple):
    """The cases of one backend, dtype, feature set and activation."""

    backend: str
    dtype: torch.dtype
    features: str
    activation: str
    cases: int
    refused: list[str]  # why the backend does not serve the others
    worst: float  # largest error over its bound
    where: str

    @property
    def passed(self) -> bool:
        return self.worst <= 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument("--backend", choices=KERNELS, help="check this one alone (default: all that run)")
    parser.add_argument("--quick", action="store_true", help="float32 and double, packed and query_to_user alone")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs")


def run(arguments: argparse.Namespace) -> int:
    """Prints a row per backend, dtype, feature set and activation; 1 when any is out of bound, or none was checked."""
    console = wide_console()
    names = [arguments.backend] if arguments.backend else KERNELS
    columns = (Column(name, no_wrap=True) for name in ("backend", "dtype", "features", "activation", "cases", ""))
    table = Table(*columns, Column("error / bound", no_wrap=True), title="local_activation", box=box.SIMPLE)
    rows, refused = [], Counter()
    for name in names:
        reason = backends.unavailable(name)
        if reason is not None:
            console.print(f"{name}: not checked, {escape(reason)}", soft_wrap=True)
            continue
        for row in check_backend(name, arguments.seed, arguments.quick):
            rows.append(row)
            refused.update(row.refused)
            if row.cases:
                verdict = "[green]ok[/green]" if row.passed else "[red]FAILED[/red]"
                dtype = str(row.dtype).removeprefix("torch.")
                where = f"{row.worst:.2f} at {escape(row.where)}"
                table.add_row(name, dtype, row.features, row.activation, str(row.cases), verdict, where)
    if rows:
        console.print(table)
    for reason, count in refused.items():
        console.print(f"not served by a kernel, {count} cases: {escape(reason)}", soft_wrap=True)
    others = [row for name in names if backends.unavailable(name) is None for row in check_ops(name, arguments.seed)]
    if others:
        console.print(_ops_table(others))
    failed = [row for row in (*rows, *others) if not row.passed]
    checked, rows = sum(row.cases for row in (*rows, *others)), [*rows, *others]
    console.print(f"{checked} cases checked, {len(failed)} of {len(rows)} rows out of bound")
    return 1 if failed or not checked else 0


def check_backend(name: str, seed: int = 0, quick: bool = False) -> Iterator[Row]:
    """A `Row` per dtype, feature set and activation; normalizations and layouts are its cases."""
    layouts = ("packed", "query_to_user") if quick else LAYOUTS
    for dtype in options.DTYPES[:2] if quick else options.DTYPES:
        for features in options.FEATURES:
            for activation in ACTIVATION_CASES:
                yield _row(name, dtype, features, activation, layouts, seed)


class OpRow(NamedTuple):
    """One op with one option, of one backend, in every dtype."""

    backend: str
    op: str
    option: str
    cases: int
    worst: float
    where: str

    @property
    def passed(self) -> bool:
        return self.worst <= 1


def check_ops(name: str, seed: int = 0) -> Iterator[OpRow]:
    """An `OpRow` per op and option beside the unit's own; its dtypes are its cases."""
    for case in verification_ops.op_cases(seed):
        done, worst, where = 0, 0.0, ""
        for dtype in verification.FLOOR:
            try:
                found = list(verification_ops.op_deviations(case, name, dtype, backends.device_of(name)))
            except backends.BackendError:
                continue
            done += 1
            for each in found:
                ratio = math.inf if math.isnan(each.ratio) else each.ratio
                if ratio >= worst:
                    worst, where = ratio, f"{each.tensor}, {str(dtype).removeprefix('torch.')}"
        yield OpRow(name, case.op, case.name, done, worst, where)


def _ops_table(rows: list[OpRow]) -> Table:
    columns = (Column(name, no_wrap=True) for name in ("backend", "op", "option", "dtypes", "", "error / bound"))
    table = Table(*columns, title="other ops", box=box.SIMPLE)
    for row in rows:
        verdict = "not served" if not row.cases else "[green]ok[/green]" if row.passed else "[red]FAILED[/red]"
        where = f"{row.worst:.2f} at {escape(row.where)}" if row.cases else ""
        table.add_row(row.backend, row.op, row.option, str(row.cases), verdict, where)
    return table


def _row(name: str, dtype: torch.dtype, features: str, activation: str, layouts: tuple[str, ...], seed: int) -> Row:
    done, refused, worst, where = 0, [], 0.0, ""
    for normalize in options.NORMALIZATIONS:
        for layout in layouts:
            case = verification.make_case(features, activation, normalize, layout, seed=seed)
            try:
                found = list(verification.deviations(case, name, dtype, backends.device_of(name)))
            except backends.BackendError as error:
                refused.append(str(error))
                continue
            done += 1
            for each in found:
                ratio = math.inf if math.isnan(each.ratio) else each.ratio
                if ratio >= worst:
                    worst, where = ratio, f"{each.tensor}, {normalize}, {layout}"
    return Row(name, dtype, features, activation, done, refused, worst, where)
