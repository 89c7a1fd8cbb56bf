"""Reading number tables at numpy's speed, with a file and a line in every complaint."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_NEWLINE = 10
_MAX_DIGITS = 18  # any such number fits int64


def read_bytes(path: Path) -> bytes:
    """The whole file, whose last line must end: a file that was cut off would otherwise lose digits in silence."""
    data = Path(path).read_bytes()
    if not data:
        raise ValueError(f"{path}: line 1: the file is empty")
    newlines = data.count(b"\n")
    if not data.endswith(b"\n"):
        raise ValueError(f"{path}: line {newlines + 1}: no newline at the end, the file looks truncated")
    return data


def parse_lines(path: Path, data: bytes, separators: bytes = b" \t\r") -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers of every line, as `(values [n] int64, offsets [lines + 1] int64)`.

    Raises:
        ValueError: a byte that is neither a digit nor a separator, or a number too long, with file and line.
    """
    raw = np.frombuffer(data, np.uint8)
    digit = (raw >= ord("0")) & (raw <= ord("9"))
    newline = raw == _NEWLINE
    allowed = digit | newline
    for separator in separators:
        allowed |= raw == separator
    if not allowed.all():
        at = int(np.flatnonzero(~allowed)[0])
        raise ValueError(f"{path}: line {line_of(data, at)}: expected whole numbers, got {chr(raw[at])!r}")
    edge = np.diff(digit.astype(np.int8), prepend=0, append=0)
    starts, ends = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    width = ends - starts
    if len(width) and width.max() > _MAX_DIGITS:
        at = int(starts[width.argmax()])
        raise ValueError(f"{path}: line {line_of(data, at)}: a number of {width.max()} digits does not fit int64")
    # Digits from the right, one pass per digit place: 1.0 + 2.0 ... passes over short ids, no Python object per number.
    values = np.zeros(len(starts), np.int64)
    scale = 1
    for place in range(int(width.max()) if len(width) else 0):
        wide = width > place
        values[wide] += (raw[ends[wide] - 1 - place].astype(np.int64) - ord("0")) * scale
        scale *= 10
    offsets = np.concatenate([[0], np.searchsorted(starts, np.flatnonzero(newline))])
    return values, offsets


def parse_table(path: Path, data: bytes, columns: int, separators: bytes = b" \t\r", first_line: int = 1) -> np.ndarray:
    """`[lines, columns]` int64 from `parse_lines`, each line with exactly `columns` numbers.

    Raises:
        ValueError: as `parse_lines`, or a line with another number of columns.
    """
    values, offsets = parse_lines(path, data, separators)
    width = np.diff(offsets)
    if (width != columns).any():
        at = int(np.flatnonzero(width != columns)[0])
        raise ValueError(f"{path}: line {at + first_line}: expected {columns} numbers, got {width[at]}")
    return values.reshape(-1, columns)


def line_of(data: bytes, at: int) -> int:
    """The line (from 1) that holds byte `at`."""
    return data.count(b"\n", 0, at) + 1


def dense_ids(raw: np.ndarray, vocabulary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(ids, known)`: the place of each of `raw` in the sorted `vocabulary`, and whether it is there."""
    if not len(vocabulary):
        return np.zeros(len(raw), np.int64), np.zeros(len(raw), bool)
    ids = np.minimum(np.searchsorted(vocabulary, raw), len(vocabulary) - 1)
    return ids, vocabulary[ids] == raw
