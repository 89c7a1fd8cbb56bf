"""Argument checks with one wording: the argument's name, what was expected, what came."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Sequence
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


def number(
    name: str,
    value,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    infinite: bool = False,
) -> None:
    """TypeError unless `value` is a real number or a 0-D real tensor, ValueError unless it is in bounds and finite.

    `infinite` lets infinity pass, NaN never does.
    """
    if isinstance(value, (torch.SymFloat, torch.SymInt)):
        return  # a trace knows the type alone
    given = value
    if isinstance(value, torch.Tensor) and not value.dim() and not value.is_complex() and value.dtype != torch.bool:
        if not values_readable(value):
            return
        given = value.item()
    if not isinstance(given, numbers.Real) or isinstance(given, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not _within(float(given), at_least, at_most, below):
        raise ValueError(f"{name} must {_bounds(at_least, at_most, below)}, got {given}")
    if math.isinf(given) and not infinite:
        raise ValueError(f"{name} must be finite, got {given}")


def integer(name: str, value, *, at_least: int | None = None, at_most: int | None = None) -> None:
    """TypeError unless `value` is an integer, ValueError unless it is in bounds."""
    if isinstance(value, torch.SymInt):
        return
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not _within(value, at_least, at_most, None):
        raise ValueError(f"{name} must {_bounds(at_least, at_most, None)}, got {value}")


def flag(name: str, value) -> None:
    """TypeError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def is_real(name: str, value: torch.Tensor) -> None:
    """TypeError where `value` holds no real numbers."""
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {value.dtype}")


def counts_of_ids(name: str, counts: torch.Tensor, ids: torch.Tensor, readable=values_readable) -> None:
    """ValueError where n_j of one of `ids` is negative or NaN and the values may be looked at."""
    if counts.dtype.is_signed and readable(counts) and ids.numel():
        low = counts.index_select(0, ids).min()
        if not bool(low >= 0):
            raise ValueError(f"{name} must be at least 0 for every id of the batch, got {low.item()}")


def widths(name: str, value, at_most: int | None = None) -> None:
    """TypeError unless `value` is a sequence of integers, ValueError unless each is at least 1, `at_most` in all."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a sequence of widths, got {type(value).__name__}")
    for at, width in enumerate(value):
        integer(f"{name}[{at}]", width)
    if (at_most is not None and len(value) > at_most) or any(width < 1 for width in value):
        how_many = "" if at_most is None else f"0 to {at_most} "
        raise ValueError(f"{name} must be {how_many}widths of at least 1, got {tuple(value)}")


def floating_dtype(name: str, value) -> None:
    """TypeError unless `value` is None (torch's default) or a floating-point dtype."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise TypeError(f"{name} must be a floating-point dtype, got {value}")


def _within(value, at_least, at_most, below) -> bool:
    """Whether `value` keeps its bounds; NaN keeps none."""
    return (
        value == value
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )


def _bounds(at_least, at_most, below) -> str:
    if at_least is None:
        return "be a finite number"
    if at_most is not None:
        return f"lie in [{at_least}, {at_most}]"
    return f"be at least {at_least}" if below is None else f"lie in [{at_least}, {below})"


def row_of(name: str, value, rows: int, words: str) -> None:
    """TypeError, IndexError unless `value` is None or one of `rows` rows."""
    if value is None:
        return
    integer(name, value)
    if not 0 <= value < rows:
        raise IndexError(f"{name} must lie in 0..{rows - 1} ({words}), got {value}")


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
