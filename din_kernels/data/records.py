"""Files with one record a line, JSON or Python literals, with a file and a line in every complaint."""

from __future__ import annotations

import ast
import codecs
import gzip
import json
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from din_kernels.data import text


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """`(number, line)` of a UTF-8 file, gzip-compressed where its name ends in .gz.

    Raises:
        ValueError: an empty file, a compressed file that ends early, bytes that are not UTF-8, or a last line that does
            not end, with file and line.
    """
    number, line = 0, b"\n"
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:  # bytes: text mode would end lines at a lone "\r" too
            for number, line in enumerate(file, 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield number, text.decoded(path, line, number)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: line {number + 1}: the file is truncated or damaged ({error})") from error
    if number == 0:
        raise ValueError(f"{path}: line 1: the file is empty")
    if not line.endswith(text.NEWLINE):
        raise ValueError(f"{path}: line {number}: no newline at the end, the file looks truncated")


def parsed(path: Path, number: int, line: str) -> dict:
    """The one record that `line` holds: a JSON object or, as in the metadata of 2014, a Python dict of literals."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        record = _literal(line) if line.startswith("{") else None
        if record is None:
            got = f"{text.shown(line.strip())} ({error})"
            raise ValueError(f"{path}: line {number}: expected one JSON object or Python dict, got {got}") from error
    if not isinstance(record, dict):
        got = text.shown(line.strip())
        raise ValueError(f"{path}: line {number}: expected one JSON object or Python dict, got {got}")
    return record


def name(path: Path, number: int, record: dict, field: str) -> str:
    """The field as a name: text that is not empty and holds no NUL, which NumPy drops from the end of a string."""
    value = record.get(field)
    if not isinstance(value, str):
        raise ValueError(f"{path}: line {number}: {field} must be str, got {text.shown(value)}")
    if not value or "\0" in value:
        raise ValueError(f"{path}: line {number}: {field} must not be empty or hold a NUL, got {text.shown(value)}")
    return value


def integer(path: Path, number: int, record: dict, field: str) -> int:
    """The field as an int that fits int64."""
    value = record.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{path}: line {number}: {field} must be int, got {text.shown(value)}")
    if not -text.FITS_INT64 <= value <= text.FITS_INT64:
        raise ValueError(f"{path}: line {number}: {field} must fit int64, got {text.shown(value)}")
    return value


def _literal(line: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a title with a backslash is no concern of the user's
        try:
            return ast.literal_eval(line.rstrip("\r\n"))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
