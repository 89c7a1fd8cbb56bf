"""C++ SIMD kernels for CPU tensors; here a tensor becomes a pointer."""

from __future__ import annotations

import functools

import torch  # noqa: F401  before _cpu, so that both use one OpenMP pool


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
