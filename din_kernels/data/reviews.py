"""Amazon reviews: the raw json files."""

from __future__ import annotations

import ast
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from din_kernels.data.interactions import Interactions

UNKNOWN_CATEGORY = "unknown"
_ASIN = re.compile(r"""['"]asin['"]: ?['"]([^'"]*)['"]""")


def load_amazon_reviews(reviews: str | Path, meta: str | Path) -> Interactions:
    """The raw 5-core set, .json or .json.gz.

    Reviews have `reviewerID`, `asin` and `unixReviewTime`, the meta file `asin` and `categories`.
    Lines are JSON or Python literals (the 2014 meta files). A user's reviews are sorted by time; ties keep the file's
    order. The category of an item is the last of its last category path, as in the paper's released code; an item that
    the meta file does not describe gets the category "unknown".

    Raises:
        ValueError: a truncated file, a line that cannot be read, or a missing field, with file and line.
    """
    reviews, meta = Path(reviews), Path(meta)
    users, items, times = [], [], []
    for number, line in _lines(reviews):
        record = _record(reviews, number, line)
        users.append(_field(reviews, number, record, "reviewerID", str))
        items.append(_field(reviews, number, record, "asin", str))
        times.append(_field(reviews, number, record, "unixReviewTime", int))
    user_names, user_ids = np.unique(np.array(users, dtype=str), return_inverse=True)
    item_names, item_ids = np.unique(np.array(items, dtype=str), return_inverse=True)
    order = np.lexsort((np.array(times, np.int64), user_ids))  # stable: ties keep the file's order

    category = _read_categories(meta, set(item_names.tolist()))
    names = [category.get(name, UNKNOWN_CATEGORY) for name in item_names.tolist()]
    category_names, category_ids = np.unique(np.array(names, dtype=str), return_inverse=True)
    lengths = np.bincount(user_ids, minlength=len(user_names))
    return Interactions(
        user_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=item_ids[order].astype(np.int64),
        category_ids=category_ids.astype(np.int64),
        n_categories=len(category_names),
        user_names=user_names,
        item_names=item_names,
        category_names=category_names,
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """`(number, line)`; a compressed file that ends early, or a last line that does not end, is refused."""
    number, line = 0, "\n"
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: line {number + 1}: the file is truncated or damaged ({error})") from error
    if number == 0:
        raise ValueError(f"{path}: line 1: the file is empty")
    if not line.endswith("\n"):
        raise ValueError(f"{path}: line {number}: no newline at the end, the file looks truncated")


def _malformed(path: Path, number: int, complaint: str) -> ValueError:
    return ValueError(f"{path}: line {number}: {complaint}")


def _record(path: Path, number: int, line: str) -> dict:
    try:
        record = json.loads(line)
    except ValueError:
        try:
            record = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            record = None
    if not isinstance(record, dict):
        raise _malformed(path, number, f"expected one JSON object or Python dict, got {line.strip()[:60]!r}")
    return record


def _field(path: Path, number: int, record: dict, name: str, kind: type):
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _malformed(path, number, f"{name} must be {kind.__name__}, got {value!r}")
    return value


def _read_categories(path: Path, wanted: set[str]) -> dict[str, str]:
    """Item name -> category, for the `wanted` items: the other lines of a meta file, most of it, are only skimmed."""
    category = {}
    for number, line in _lines(path):
        skimmed = _ASIN.search(line)
        if skimmed and skimmed[1] not in wanted and line[0] == "{" and line.rstrip()[-1] == "}":
            continue
        record = _record(path, number, line)
        name = _field(path, number, record, "asin", str)
        if name not in wanted:
            continue
        paths = (
            record.get("categories") or record.get("category") or [UNKNOWN_CATEGORY]
        )  # "category": one flat path (2018)
        last = paths[-1] if isinstance(paths, list) else paths
        last = last[-1] if isinstance(last, list) and last else last
        if not isinstance(last, str):
            raise _malformed(path, number, f"categories must be lists of names, got {paths!r}")
        category[name] = last
    return category
