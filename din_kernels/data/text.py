"""Reading number tables at numpy's speed, with a file and a line in every complaint."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NEWLINE = b"\n"
_MAX_DIGITS = 18  # any such number fits int64


def read_bytes(path: Path) -> bytes:
    """The whole file, whose last line must end: a file that was cut off would otherwise lose digits in silence."""
    data = Path(path).read_bytes()
    if not data:
        raise ValueError(f"{path}: line 1: the file is empty")
    newlines = data.count(NEWLINE)
    if not data.endswith(NEWLINE):
        raise ValueError(f"{path}: line {newlines + 1}: no newline at the end, the file looks truncated")
    return data


def parse_lines(
    path: Path, data: bytes, separators: bytes = b" \t\r", ends: bytes = b"\n", first_line: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers of every group, as `(values [n] int64, offsets [groups + 1] int64)`; one of `ends` ends a group.

    Args:
        path, first_line: for the complaints; `data` starts at line `first_line` of `path`.

    Raises:
        ValueError: a byte that is neither a digit nor a separator, or a number too long, with file and line.
    """
    raw = np.frombuffer(data, np.uint8)
    digit = (raw >= ord("0")) & (raw <= ord("9"))
    ending = np.isin(raw, np.frombuffer(ends, np.uint8))
    allowed = digit | ending | np.isin(raw, np.frombuffer(separators, np.uint8))

    def where(at: int) -> str:
        return f"{path}: line {data.count(NEWLINE, 0, at) + first_line}"

    if not allowed.all():
        at = int(np.flatnonzero(~allowed)[0])
        raise ValueError(f"{where(at)}: expected whole numbers, got {chr(raw[at])!r}")
    edge = np.diff(digit.astype(np.int8), prepend=0, append=0)
    starts, stops = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    width = stops - starts
    if len(width) and width.max() > _MAX_DIGITS:
        at = int(width.argmax())
        raise ValueError(f"{where(int(starts[at]))}: a number of {width[at]} digits does not fit int64")
    # Digit places from the right, one pass each: as many passes as the longest number has digits, no object per number.
    values = np.zeros(len(starts), np.int64)
    for place in range(int(width.max()) if len(width) else 0):
        wide = np.flatnonzero(width > place)
        values[wide] += (raw[stops[wide] - 1 - place].astype(np.int64) - ord("0")) * 10**place
    offsets = np.concatenate([[0], np.searchsorted(starts, np.flatnonzero(ending))])
    return values, offsets


def parse_table(path: Path, data: bytes, columns: int) -> np.ndarray:
    """`[lines, columns]` int64 from `parse_lines`, each line with exactly `columns` numbers.

    Raises:
        ValueError: as `parse_lines`, or a line with another number of columns.
    """
    values, offsets = parse_lines(path, data)
    width = np.diff(offsets)
    if (width != columns).any():
        at = int(np.flatnonzero(width != columns)[0])
        raise ValueError(f"{path}: line {at + 1}: expected {columns} numbers, got {width[at]}")
    return values.reshape(-1, columns)


def dense_ids(raw: np.ndarray, vocabulary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(ids, known)`: the place of each of `raw` in the sorted `vocabulary`, and whether it is there."""
    if not len(vocabulary):
        return np.zeros(len(raw), np.int64), np.zeros(len(raw), bool)
    ids = np.minimum(np.searchsorted(vocabulary, raw), len(vocabulary) - 1)
    return ids, vocabulary[ids] == raw
