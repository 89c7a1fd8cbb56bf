"""Values held to a type annotation, as the fields of a recipe come from JSON."""

from __future__ import annotations

import dataclasses
import math
import types
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
KINDS = {int: Integral, float: Real, bool: bool, str: str, type(None): type(None)}


def fits(name: str, value: Any, hint: Any, error: type[Exception] = ValueError) -> None:
    """Raises unless `value` fits the annotation `hint`; a list fits a tuple, and a dict a dataclass of its fields.

    Args:
        name: of the value, for the error; parts of it get names such as `tables['item'].dim`.
        value: any.
        hint: int, float, bool, str, None, unions of them, and dict, list, tuple and dataclasses of such.
        error: what to raise.

    Raises:
        ValueError: a number that is not finite.
        error: names the value or the part that does not fit, what was expected and what came.

    Example:
        >>> fits("widths", [80, "40"], tuple[int, ...])
        Traceback (most recent call last):
        ValueError: widths[1] must be a whole number, got '40'
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint in KINDS:
        # True is an int in Python, and never meant as one.
        if not isinstance(value, KINDS[hint]) or (isinstance(value, bool) and hint is not bool):
            raise error(f"{name} must be {WORDS[hint]}, got {_short(value)}")
        if hint is float and not _finite(value):
            raise ValueError(f"{name} must be finite, got {_short(value)}")
    elif origin in (Union, types.UnionType):
        for each in inner:
            if each in KINDS and isinstance(value, KINDS[each]) and isinstance(value, bool) <= (each is bool):
                return
        raise error(f"{name} must be {' or '.join(WORDS[each] for each in inner)}, got {_short(value)}")
    elif origin is dict:
        _container(name, value, dict, "an object", error)
        for key, each in value.items():
            fits(f"{name}[{key!r}]", each, inner[1], error)
    elif origin is list or (origin is tuple and inner[1:] == (...,)):
        _container(name, value, (list, tuple), "a list", error)
        for at, each in enumerate(value):
            fits(f"{name}[{at}]", each, inner[0], error)
    elif origin is tuple:
        _container(name, value, (list, tuple), "a list", error)
        if len(value) != len(inner):
            raise error(f"{name} must be a list of {len(inner)}, got {_short(value)}")
        for at, (each, kind) in enumerate(zip(value, inner, strict=True)):
            fits(f"{name}[{at}]", each, kind, error)
    else:
        fields_fit(name, value, hint, error=error)


def fields_fit(
    name: str, value: Any, kind: type, changes: dict[str, Any] | None = None, error: type[Exception] = ValueError
) -> None:
    """Raises unless `value` is a dict of fields of the dataclass `kind`, with all that have no default.

    Args:
        name: of the value, for the error.
        value: any.
        kind: a dataclass.
        changes: hints that replace those of `kind`, by field.
        error: what to raise.
    """
    _container(name, value, dict, "an object", error)
    hints = get_type_hints(kind) | (changes or {})
    fields = {each.name: each for each in dataclasses.fields(kind)}
    unknown = [key for key in value if key not in fields]
    if unknown:
        raise error(f"{name} must hold {', '.join(sorted(fields))}, got {', '.join(map(str, unknown))}")
    for key, field in fields.items():
        if key in value:
            fits(f"{name}.{key}", value[key], hints[key], error)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"{name} must hold {key}, got {', '.join(map(str, value)) or 'nothing'}")


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond what a float holds
        return False


def _short(value: Any) -> str:
    """`repr` in one line of bounded length, whatever a file holds."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _container(name: str, value: Any, kinds: type | tuple[type, ...], words: str, error: type[Exception]) -> None:
    if not isinstance(value, kinds):
        raise error(f"{name} must be {words}, got {_short(value)}")
