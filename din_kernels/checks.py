"""Argument checks with one wording: the argument's name, what was expected, what came."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar

import torch

from din_kernels import config

_debug: ContextVar[bool | None] = ContextVar("din_kernels_debug_checks", default=None)


@contextlib.contextmanager
def debug_checks(enabled: bool = True):
    """Within the block, also check values (offsets, ids) that live on a GPU, at the price of waiting for it.

    On CPU tensors values are always checked.
    """
    token = _debug.set(bool(enabled))
    try:
        yield
    finally:
        _debug.reset(token)


def values_readable(tensor: torch.Tensor) -> bool:
    """Whether the values of `tensor` may be looked at now: not while tracing, on a GPU only under debug_checks."""
    if torch.compiler.is_compiling() or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return at_hand(tensor)


def at_hand(tensor: torch.Tensor) -> bool:
    """As `values_readable`, within an op's implementation, which no trace reaches, whatever class the tensor has."""
    if tensor.device.type == "cpu":
        return True
    if tensor.device.type == "meta":
        return False
    asked = _debug.get()
    return config.debug_checks() if asked is None else asked


def is_tensor(name: str, value, ndim: int | tuple[int, ...] | None = None, shape: str = "") -> None:
    """TypeError unless `value` is a tensor, ValueError unless its ndim is allowed; `shape` words the expectation."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and value.dim() not in allowed:
        raise ValueError(f"{name} must have shape {shape}, got {list(value.shape)}")


def is_floating(name: str, value: torch.Tensor) -> None:
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {value.dtype}")


def is_index(name: str, value: torch.Tensor) -> None:
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {value.dtype}")


def same_dtype(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype of {other_name} ({other.dtype}), got {value.dtype}")


def same_device(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name} ({other.device}), got {value.device}")


def has_shape(name: str, value: torch.Tensor, shape: tuple[int, ...], words: str = "") -> None:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}{words}, got {list(value.shape)}")


def one_of(name: str, value, known) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def ids_within(
    name: str, ids: torch.Tensor, rows: int, words: str = "rows of its table", readable=values_readable
) -> None:
    """IndexError unless all ids lie in 0 .. rows - 1, where `readable(ids)` lets their values be looked at."""
    if readable(ids) and ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= rows:
            raise IndexError(f"{name} must lie in 0..{rows - 1} ({words}), got {low}..{high}")
