"""Checks of arrays and numbers at the public edge of `data`: ids become int64 whatever integer type comes in."""

from __future__ import annotations

import operator

import numpy as np
import torch


def is_a(name: str, value, kind: type) -> None:
    """TypeError unless `value` is a `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {type(value).__name__}")


def whole(name: str, value, least: int, words: str = "") -> int:
    """`value` as an int; TypeError unless it is a whole number, ValueError below `least`."""
    try:
        truth = isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)
        number = None if truth else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number{words}, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}{words}, got {number}")
    return number


def longest(max_length) -> int | None:
    """The `max_length` of histories: None or a whole number from 0."""
    return None if max_length is None else min(whole("max_length", max_length, 0, " or None"), np.iinfo(np.int64).max)


def flag(name: str, value) -> bool:
    """`value` as a bool; TypeError for anything else, of which `"no"` would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def ids(name: str, value, shape: str = "[N]") -> np.ndarray:
    """`value` as an int64 array with as many axes as `shape` names.

    Sums and products of ids are computed in their own dtype by NumPy, where narrow ones overflow without a word, so
    int64 is taken once, here. Float ids are refused: above 2**53 (float64) or 2**24 (float32) they are no longer exact.

    Raises:
        TypeError: no array, or not of an integer dtype.
        ValueError: another number of axes, or a number that does not fit int64.
    """
    array = _array(name, value, f"whole numbers {shape}")
    if array.dtype.kind not in "iu" and array.size:  # NumPy makes an empty list float64
        raise TypeError(f"{name} must have an integer dtype, got {array.dtype}")
    _axes(name, array, shape)
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit int64, got {array.max()}")
    return array.astype(np.int64, copy=False)


def labels(name: str, value, shape: str) -> np.ndarray:
    """`value` as a float32 array of numbers in 0..1.

    Raises:
        TypeError: no array, or not of a real dtype.
        ValueError: another number of axes, or a number outside 0..1 (NaN too).
    """
    array = _array(name, value, f"numbers {shape}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must have a real dtype, got {array.dtype}")
    _axes(name, array, shape)
    array = array.astype(np.float32, copy=False)
    if array.size and not (array.min() >= 0 and array.max() <= 1):  # a NaN makes both comparisons false
        raise ValueError(f"{name} must lie in 0..1, got {array.min()}..{array.max()}")
    return array


def within(name: str, values: np.ndarray, size: int, error: type[Exception] = ValueError) -> None:
    """`error` unless all `values` lie in 0 .. size - 1."""
    if values.size and (values.min() < 0 or values.max() >= size):
        raise error(f"{name} must lie in 0..{size - 1}, got {values.min()}..{values.max()}")


def _array(name: str, value, expected: str) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array of {expected}, got a masked array, whose mask would be lost")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array of {expected}, got {type(value).__name__}") from error


def _axes(name: str, array: np.ndarray, shape: str) -> None:
    if array.ndim != shape.count(",") + 1:
        raise ValueError(f"{name} must have shape {shape}, got {list(array.shape)}")
