"""C++ SIMD kernels for CPU tensors."""

from __future__ import annotations

import functools

import torch  # noqa: F401  before _cpu, so that both use one OpenMP pool

from din_kernels.backends import Request
from din_kernels.backends.compiled import name_of
from din_kernels.options import DTYPES


@functools.cache
def unavailable() -> str | None:
    """Why the compiled core cannot be used, or None.

    Raises:
        RuntimeError: DIN_KERNELS_ISA names an instruction set that is unknown or cannot run here.
    """
    try:
        from din_kernels import _cpu
    except ImportError as error:
        return f"the compiled core din_kernels._cpu does not load: {error}"
    _cpu.isa()
    return None


def refuses_tensors(request: Request) -> str | None:
    """Why these kernels cannot take tensors of the request's device and dtype, or None."""
    if request.device != "cpu":
        return f"its tensors must be on the CPU, got {request.device}"
    if request.dtype not in DTYPES:
        return f"dtype must be one of {', '.join(map(name_of, DTYPES))}, got {request.dtype}"
    return None
