"""Argument checks with one wording: the argument's name, what was expected, what came."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from contextvars import ContextVar

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from din_kernels import config
from din_kernels.options import DTYPES

# The dtypes whose values a count or a parameter may have; torch computes almost nothing in uint16, uint32 and uint64.
REAL_DTYPES = (*DTYPES, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_LARGEST = 2**31 - 1  # width or number of rows that a constructor takes; torch cannot say the size of much larger ones

# So many numbers of a tensor are looked at faster one by one in Python, where a torch op on a few takes 1 to 3 us.
FEW = 256

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
    """TypeError unless `value` is a plain tensor, ValueError unless its ndim is allowed; `shape` words the expectation.

    A plain tensor has elements at strides: it is not sparse, nested, quantized, of mkldnn or without storage yet.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not _is_plain(value):
        raise TypeError(f"{name} must be a plain (strided) torch.Tensor, got {_kind_of(value)}")
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and value.dim() not in allowed:
        raise ValueError(f"{name} must have shape {shape}, got {list(value.shape)}")


def _is_plain(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return False
    return not isinstance(tensor, UninitializedTensorMixin)


def _kind_of(tensor: torch.Tensor) -> str:
    """What keeps a tensor from being plain."""
    if isinstance(tensor, UninitializedTensorMixin):
        return "an uninitialized parameter"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype})"
    return f"a tensor of layout {tensor.layout}"


def listed(name: str, value, words: str = "tensors") -> list:
    """`value` as a list; TypeError where it is a tensor, an array, a string or nothing that has entries."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping, Set)) or hasattr(value, "__array__"):
        raise TypeError(f"{name} must be a list of {words}, got {type(value).__name__}")
    return list(value)


def is_mapping(name: str, value, words: str) -> None:
    """TypeError unless `value` is a dict of `words`."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of {words}, got {type(value).__name__}")


def is_floating(name: str, value: torch.Tensor) -> None:
    """TypeError unless `value` is of one of `options.DTYPES`, which float8 is not."""
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must have a floating-point dtype of 16, 32 or 64 bits, got {value.dtype}")


def is_mask(name: str, value: torch.Tensor) -> None:
    """TypeError unless `value` is bool."""
    if value.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, true where valid, got {value.dtype}")


def is_index(name: str, value: torch.Tensor) -> None:
    """TypeError unless `value` holds int64 or int32 numbers in memory."""
    if value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {value.dtype}")
    has_storage(name, value)


def has_storage(name: str, value: torch.Tensor) -> None:
    """TypeError where `value` is one of the zero tensors that autograd makes: torch crashes where it indexes by one."""
    if not torch.compiler.is_compiling() and value._is_zerotensor():
        raise TypeError(f"{name} must have its numbers in memory, got one of torch's zero tensors, which has none")


def is_writable(name: str, value: torch.Tensor) -> None:
    """TypeError or ValueError unless every element of `value` has a place of its own in memory and may be written."""
    has_storage(name, value)
    if not torch.compiler.is_compiling() and value.is_inference() and not torch.is_inference_mode_enabled():
        raise TypeError(
            f"{name} must not be an inference tensor where it is written outside of inference mode, got one"
        )
    if value.is_contiguous():
        return
    if any(stride == 0 and size > 1 for size, stride in zip(value.shape, value.stride(), strict=True)):
        raise ValueError(
            f"{name} must have a place in memory for every element, since they are written, got strides "
            f"{value.stride()} for shape {list(value.shape)}"
        )


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
    if type(value) is float and not torch.compiler.is_compiling():  # as most are
        if math.isfinite(value) and _within(value, at_least, at_most, below):
            return
    given = value
    if isinstance(value, torch.Tensor) and _is_scalar(value):
        if not values_readable(value):
            return
        given = value.item()
    if not isinstance(given, numbers.Real) or isinstance(given, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        real = float(given)
    except OverflowError:
        raise ValueError(f"{name} must be a finite number, got an integer beyond float64") from None
    if not _within(real, at_least, at_most, below):
        raise ValueError(f"{name} must {_bounds(at_least, at_most, below)}, got {value}")
    if abs(given) == math.inf and not infinite:
        raise ValueError(f"{name} must be finite, got {value}")


def _is_scalar(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds one real number that `float` can read, now or when a trace runs."""
    plain = _is_plain(tensor) and not tensor.dim() and tensor.dtype in REAL_DTYPES
    return plain and (tensor.device.type != "meta" or torch.compiler.is_compiling())


def integer(name: str, value, *, at_least: int | None = None, at_most: int | None = None) -> None:
    """TypeError unless `value` is an integer, ValueError unless it is in bounds."""
    if isinstance(value, torch.SymInt):
        return
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not _within(value, at_least, at_most, None):
        raise ValueError(f"{name} must {_bounds(at_least, at_most, None)}, got {value}")


def size(name: str, value, at_least: int = 1) -> None:
    """TypeError unless `value` is an integer, ValueError unless it can be a width or a number of rows."""
    integer(name, value, at_least=at_least)
    if value > _LARGEST:
        raise ValueError(f"{name} must be at most {_LARGEST}, got {value}")


def flag(name: str, value) -> None:
    """TypeError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def is_real(name: str, value: torch.Tensor) -> None:
    """TypeError unless `value` is of one of `REAL_DTYPES`."""
    if value.dtype not in REAL_DTYPES:
        raise TypeError(f"{name} must hold real numbers of a common dtype, got {value.dtype}")


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
    for at, width in enumerate(value):
        size(f"{name}[{at}]", width)


def floating_dtype(name: str, value) -> None:
    """TypeError unless `value` is None (torch's default) or one of `options.DTYPES`."""
    if value is not None and not (isinstance(value, torch.dtype) and value in DTYPES):
        raise TypeError(f"{name} must be a floating-point dtype, got {_shown(value)} (known: 16, 32 and 64 bits)")


def device(name: str, value) -> None:
    """TypeError unless `value` is None (torch's default) or names a device, ValueError where no device is so called."""
    if value is None or isinstance(value, torch.device):
        return
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a torch.device or a device's name, got {type(value).__name__}")
    try:
        torch.device(value)
    except (RuntimeError, OverflowError, ValueError, TypeError):
        raise ValueError(f"{name} must be a device that torch knows, got {value!r}") from None


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
    """ValueError unless `value` is one of the strings `known`."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {_shown(value)}")


def _shown(value) -> str:
    """A value as a message shows it: a large or strange one by its type alone."""
    if value is None or isinstance(value, (str, bool, float, torch.dtype)):
        return repr(value)
    return type(value).__name__


def ids_within(
    name: str, ids: torch.Tensor, rows: int, words: str = "rows of its table", readable=values_readable
) -> None:
    """IndexError unless all ids lie in 0 .. rows - 1, where `readable(ids)` lets their values be looked at."""
    if readable(ids) and ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= rows:
            raise IndexError(f"{name} must lie in 0..{rows - 1} ({words}), got {low}..{high}")
