"""Reading text and number tables at numpy's speed, with a file and a line in every complaint.

A line ends at `\\n`, and a `\\r` before it is not part of it. No other character ends a line: titles hold U+0085,
U+2028, vertical tabs and form feeds, at which `str.splitlines` would cut them.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

NEWLINE = b"\n"
FITS_INT64 = np.iinfo(np.int64).max
_SAFE_DIGITS = 18  # any such number fits int64
_OTHER, _SEPARATOR, _END, _DIGIT = range(4)  # kinds of bytes
_LONE_RETURN = re.compile(rb"\r(?!\n)")


class Numbers(NamedTuple):
    """Whole numbers in groups; group g holds `values[offsets[g] : offsets[g + 1]]`.

    Args:
        values: `[n]` int64.
        offsets: `[groups + 1]` int64.
        starts: `[n]` int64, the byte at which each number begins.
    """

    values: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray


def read_bytes(path: Path) -> bytes:
    """The whole file without a byte order mark; its last line must end: a file cut off would lose digits in silence."""
    data = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    if not data:
        raise ValueError(f"{path}: line 1: the file is empty")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: line 1: the file must be UTF-8, got UTF-16")
    newlines = data.count(NEWLINE)
    if not data.endswith(NEWLINE):
        raise ValueError(f"{path}: line {newlines + 1}: no newline at the end, the file looks truncated")
    return data


def decoded(path: Path, data: bytes, line: int = 1, fallback: str | None = None) -> str:
    """`data`, which starts at line `line` of `path`, as UTF-8, or as `fallback` where it is not UTF-8.

    Raises:
        ValueError: bytes that are not UTF-8, without a fallback, with file and line.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if fallback is not None:
            return data.decode(fallback)
        line += data.count(NEWLINE, 0, error.start)
        raise ValueError(
            f"{path}: line {line}: expected UTF-8, got byte 0x{data[error.start]:02x} ({error.reason})"
        ) from error


def lines(path: Path, fallback: str | None = None) -> list[str]:
    """The lines of a text file without their ends; arguments and errors as `read_bytes` and `decoded`."""
    text = decoded(path, read_bytes(path), fallback=fallback)
    return [line.removesuffix("\r") for line in text.split("\n")[:-1]]


def whole(path: Path, line: int, name: str, digits: str) -> int:
    """The field `name` as an int; ValueError unless it has ASCII digits alone and fits int64."""
    # The length is looked at first: int() takes quadratic time, and refuses 4,300 digits in words of its own.
    if re.fullmatch("[0-9]+", digits) and len(digits.lstrip("0")) <= _SAFE_DIGITS + 1:
        value = int(digits)
        if value <= FITS_INT64:
            return value
    raise ValueError(f"{path}: line {line}: {name} must be a whole number that fits int64, got {shown(digits)}")


def shown(value, width: int = 60) -> str:
    """`repr(value)`, cut to `width` characters."""
    text = repr(value)
    return text if len(text) <= width else f"{text[:width]}..."


def refuse_lone_returns(path: Path, data: bytes, first_line: int = 1) -> None:
    """ValueError where a `\\r` stands alone: it is no end of a line here, and would join two lines."""
    found = _LONE_RETURN.search(data) if b"\r" in data else None
    if found:
        line = data.count(NEWLINE, 0, found.start()) + first_line
        raise ValueError(f"{path}: line {line}: expected lines that end at '\\n', got a '\\r' within a line")


def parse_lines(
    path: Path, data: bytes, separators: bytes = b" \t\r", ends: bytes = b"\n", first_line: int = 1
) -> Numbers:
    """The whole numbers of every group; one of the bytes `ends` ends a group.

    Args:
        path, first_line: for the complaints; `data` starts at line `first_line` of `path`.

    Raises:
        ValueError: a byte that is neither an ASCII digit nor a separator, a `\\r` within a line, or a number that does
            not fit int64, with file, line and value.
    """
    refuse_lone_returns(path, data, first_line)
    raw = np.frombuffer(data, np.uint8)
    kinds = data.translate(_kinds(separators, ends))
    kind = np.frombuffer(kinds, np.uint8)
    digit = kind == _DIGIT

    def where(at: int) -> str:
        return f"{path}: line {data.count(NEWLINE, 0, at) + first_line}"

    at = kinds.find(_OTHER)
    if at >= 0:
        character = data[at : at + 4].decode("utf-8", "replace")[0]
        raise ValueError(f"{where(at)}: expected whole numbers, got {character!r} in {_field_at(data, at)}")
    edge = np.diff(digit.astype(np.int8), prepend=0, append=0)
    starts, stops = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    width = stops - starts
    # Digit places from the right, one pass each: as many passes as the longest number has digits, no object per number.
    values = np.zeros(len(starts), np.int64)
    for place in range(min(int(width.max(initial=0)), _SAFE_DIGITS)):
        wide = np.flatnonzero(width > place)
        values[wide] += (raw[stops[wide] - 1 - place].astype(np.int64) - ord("0")) * 10**place
    for at in np.flatnonzero(width > _SAFE_DIGITS).tolist():
        digits = data[starts[at] : stops[at]].lstrip(b"0")
        value = int(digits or b"0") if len(digits) <= _SAFE_DIGITS + 1 else None
        if value is None or value > FITS_INT64:
            got = shown(data[starts[at] : stops[at]].decode())
            raise ValueError(f"{where(int(starts[at]))}: a number of {width[at]} digits does not fit int64, got {got}")
        values[at] = value
    offsets = np.concatenate([[0], np.searchsorted(starts, np.flatnonzero(kind == _END))])
    return Numbers(values, offsets, starts)


def _kinds(separators: bytes, ends: bytes) -> bytes:
    """`[256]` the kind of every byte, a table for `bytes.translate`."""
    kinds = bytearray([_OTHER]) * 256
    for kind, members in ((_SEPARATOR, separators), (_END, ends), (_DIGIT, b"0123456789")):
        for byte in members:
            kinds[byte] = kind
    return bytes(kinds)


def parse_table(path: Path, data: bytes, columns: int) -> np.ndarray:
    """`[lines, columns]` int64 from `parse_lines`, each line with exactly `columns` numbers.

    Raises:
        ValueError: as `parse_lines`, or a line with another number of columns.
    """
    numbers = parse_lines(path, data)
    width = np.diff(numbers.offsets)
    if (width != columns).any():
        at = int(np.flatnonzero(width != columns)[0])
        raise ValueError(f"{path}: line {at + 1}: expected {columns} numbers, got {width[at]}")
    return numbers.values.reshape(-1, columns)


def dense_ids(raw: np.ndarray, vocabulary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(ids, known)`: the place of each of `raw` in the sorted `vocabulary`, and whether it is there."""
    if not len(vocabulary):
        return np.zeros(len(raw), np.int64), np.zeros(len(raw), bool)
    ids = np.minimum(np.searchsorted(vocabulary, raw), len(vocabulary) - 1)
    return ids, vocabulary[ids] == raw


def _field_at(data: bytes, at: int) -> str:
    """The run of bytes without white space around byte `at`, as shown in a complaint."""
    before = re.search(rb"[^ \t\r\n|]*$", data[max(0, at - 30) : at])
    after = re.match(rb"[^ \t\r\n|]*", data[at : at + 30])
    assert before is not None and after is not None  # both match an empty run
    return shown((before[0] + after[0]).decode("utf-8", "replace"))
