"""CUDA C++ kernels for GPU tensors, or, with DIN_KERNELS_CUDA_EMULATE=1, the same kernels emulated on CPU tensors.

They serve only where they are asked for; docs/cuda.md says what has run on hardware.
"""

from __future__ import annotations

import contextlib
import functools
import importlib

import torch

from din_kernels import config
from din_kernels.backends import Request

REMARK = "use_backend('cuda') alone chooses it, see docs/cuda.md; no kernel for float64"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def compiled():
    """The compiled module: din_kernels._cuda, or the emulated one.

    Raises:
        ImportError: it was not built, or does not load.
    """
    return importlib.import_module("din_kernels._cuda_emulated" if config.cuda_emulate() else "din_kernels._cuda")


def unavailable() -> str | None:
    """Why these kernels cannot run on this machine, or None."""
    return _unavailable(config.cuda_emulate())


@functools.cache
def _unavailable(emulate: bool) -> str | None:
    from din_kernels import _build_info

    if not emulate and not _build_info.CUDA_BUILT:
        return f"the CUDA module was not built: {_build_info.CUDA_REASON}"
    try:
        info = compiled().device_info()
    except ImportError as error:
        return f"the CUDA module does not load: {error}"
    return info["unavailable"] or None


def refuses_tensors(request: Request) -> str | None:
    """Why these kernels cannot take tensors of the request's device and dtype, or None."""
    device = "cpu" if config.cuda_emulate() else "cuda"
    if request.device != device:
        where = "on the CPU (DIN_KERNELS_CUDA_EMULATE is set)" if device == "cpu" else "on a GPU"
        return f"its tensors must be {where}, got {request.device}"
    if request.dtype not in DTYPES:
        return f"dtype must be float32, bfloat16 or float16, got {request.dtype}"
    return None


def workspace(kernel: str, like: torch.Tensor, size: int) -> torch.Tensor:
    """Scratch memory of `size` bytes on the device of `like`.

    Raises:
        torch.OutOfMemoryError: there is not so much; names the kernel.
    """
    try:
        return torch.empty(size, dtype=torch.uint8, device=like.device)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"kernel {kernel} needs a workspace of {size} bytes: {error}") from error


@contextlib.contextmanager
def stream_of(tensor: torch.Tensor):
    """Makes the tensor's device the current one; gives the address of its current stream."""
    if tensor.device.type == "cpu":
        yield 0
        return
    with torch.cuda.device(tensor.device):
        yield torch.cuda.current_stream().cuda_stream
