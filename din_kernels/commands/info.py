"""Versions, instruction set, backends and why one is missing, and which backend serves which option."""

from __future__ import annotations

import argparse

import torch
from rich.markup import escape
from rich.table import Table

from din_kernels import backends
from din_kernels.commands.console import wide_console
from din_kernels.environment import versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="device of the option table (default: what runs)")


def run(options: argparse.Namespace) -> int:
    """Prints the tables; always succeeds."""
    console = wide_console()
    installed = Table(title="din-kernels", show_header=False)
    for row in versions():
        installed.add_row(*row)
    console.print(installed)

    available = Table("backend", "on this machine", title="backends")
    for name, reason in backends.available().items():
        runs = "[green]runs[/green]" if reason is None else f"[yellow]no[/yellow]: {escape(reason)}"
        remark = backends.remark(name)
        available.add_row(name, runs if remark is None else f"{runs}; {escape(remark)}")
    console.print(available)

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    served = Table("op", "option", "value", "served by", title=f"which backend serves which option ({device} tensors)")
    for op, option, value, backend in backends.capabilities(device):
        served.add_row(op, option, value, escape(backend))
    console.print(served)
    return 0
