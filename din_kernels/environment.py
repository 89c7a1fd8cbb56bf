"""What this installation runs with: versions, instruction set, threads."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from din_kernels import __version__, backends


def versions() -> list[tuple[str, str]]:
    """(what, value) of everything that a bug report or a measurement should say."""
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
