"""Triton kernels for GPU tensors, and under TRITON_INTERPRET=1 for CPU tensors; here a tensor becomes a pointer.

Triton compiles a kernel anew where an integer is 1 or a multiple of 16 and was not before, and where a pointer is no
multiple of 16 bytes and was: seconds, in the last batch of an epoch. So every number that changes from batch to batch
is in do_not_specialize, and what changes its size has memory of its own.
"""

from __future__ import annotations

import contextlib
import functools
from importlib.util import find_spec

import torch

from din_kernels import config

INTERPRETED = config.triton_interprets()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def unavailable() -> str | None:
    """Why these kernels cannot run on this machine, or None."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if not INTERPRETED and not torch.cuda.is_available():
        return "torch sees no GPU, and TRITON_INTERPRET=1, which runs the kernels on CPU tensors, is not set"
    return None


def refuses_tensors(request) -> str | None:
    """Why no kernel here takes tensors of the request's device or dtype, or None."""
    if request.device != "cuda" and not (INTERPRETED and request.device == "cpu"):
        return f"its tensors must be on a GPU (on the CPU only under TRITON_INTERPRET=1), got {request.device}"
    if request.dtype not in DTYPES:
        return f"dtype must be float32, bfloat16 or float16, got {request.dtype}"
    return None


def cdiv(count: int, each: int) -> int:
    """Parts of `each` that hold `count`; triton.cdiv, which may be called by kernels too, takes 6 us on the host."""
    return -(-count // each)


def next_power_of_2(count: int) -> int:
    """The least power of two that is no less than `count`."""
    return 1 << max(count - 1, 0).bit_length()


def on_device_of(tensor: torch.Tensor):
    """Context in which kernels are launched: on the tensor's GPU, whichever is current."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
