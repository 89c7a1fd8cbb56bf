"""Versions, instruction set, backends and why one is missing, and which backend serves which option."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

import torch
from rich.table import Table

from din_kernels import __version__, backends
from din_kernels.commands.console import wide_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="device of the option table (default: what runs)")


def run(options: argparse.Namespace) -> int:
    """Prints the tables; always succeeds."""
    console = wide_console()
    versions = Table(title="din-kernels", show_header=False)
    for row in version_rows():
        versions.add_row(*row)
    console.print(versions)

    available = Table("backend", "on this machine", title="backends")
    for name, reason in backends.available().items():
        available.add_row(name, "[green]runs[/green]" if reason is None else f"[yellow]no[/yellow]: {reason}")
    console.print(available)

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    served = Table("op", "option", "value", "served by", title=f"which backend serves which option ({device} tensors)")
    for op, option, value, backend in backends.capabilities(device):
        served.add_row(op, option, value, backend)
    console.print(served)
    return 0


def version_rows() -> list[tuple[str, str]]:
    """(what, value) of everything that a bug report should say."""
    rows = [
        ("din-kernels", __version__),
        ("Python", platform.python_version()),
        ("torch", torch.__version__),
        ("numpy", metadata.version("numpy")),
        ("platform", f"{platform.system()} {platform.machine()}"),
        ("instruction set", instruction_set()),
        ("threads", str(torch.get_num_threads())),
    ]
    if torch.cuda.is_available():
        rows.append(("GPU", f"{torch.cuda.get_device_name()}, compute capability {torch.cuda.get_device_capability()}"))
    return rows


def instruction_set() -> str:
    """The instruction set that the CPU kernels chose, of those that this machine supports; or why there is none."""
    reason = backends.unavailable("cpu")
    if reason is not None:
        return f"none: {reason}"
    from din_kernels import _cpu

    return f"{_cpu.isa()} (supported here: {', '.join(_cpu.supported_isas())})"
