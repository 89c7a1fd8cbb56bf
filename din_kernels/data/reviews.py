"""Amazon reviews: the raw json files of 2014, 2018 and 2023."""

from __future__ import annotations

import re
import warnings
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from din_kernels.data import records, text
from din_kernels.data.interactions import Interactions

UNKNOWN_CATEGORY = "unknown"
_NOTHING: tuple[Any, ...] = (None, "", [])  # a field that is there but says nothing
# A Python dict that starts with the item's name, as those of 2014 do: its first key lies in no nested record or text.
_FIRST_KEY = re.compile(r"""\{'asin': ?(['"])([^'"\\]*)\1[,}]""")


class Fields(NamedTuple):
    """What an edition calls the fields of a review; of `items`, the first that its first review holds."""

    user: str
    items: tuple[str, ...]
    time: str


EDITIONS = (
    Fields("reviewerID", ("asin",), "unixReviewTime"),  # 2014, 2018; seconds
    Fields("user_id", ("parent_asin", "asin"), "timestamp"),  # 2023; milliseconds
)


def load_amazon_reviews(reviews: str | Path, meta: str | Path) -> Interactions:
    """Amazon reviews with the metadata of their items, one record a line, compressed where the name ends in .gz.

    | edition | reviews | metadata |
    |---|---|---|
    | 2014 | `reviewerID`, `asin`, `unixReviewTime` | `asin`, `categories`: lists of paths; JSON or Python literals |
    | 2018 | the same | `asin`, `category`: one path |
    | 2023 | `user_id`, `parent_asin` or `asin`, `timestamp` | `parent_asin`, `categories`: one path, `main_category` |

    Every review is a behaviour, whatever its rating. A user's reviews are sorted by time; ties keep the file's order.
    The category of an item is the last name of its last path, as in the paper's released code, or its main category
    where it has no path. An item without either gets the category "unknown"; so does one that the metadata do not
    describe, with a warning. Of several records of one item the last counts. Of a Python dict only the name is read
    where no review names the item.

    Raises:
        ValueError: a truncated file, a line that is not one record, or a field that is missing or of another type, with
            file, line and value; or metadata that describe none of the items.
        FileNotFoundError: no such file.
    """
    reviews, meta = Path(reviews), Path(meta)
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_ids, item_ids, times = array("q"), array("q"), array("q")
    user_field = item_field = time_field = ""
    for number, line in records.lines(reviews):
        record = records.parsed(reviews, number, line)
        if number == 1:
            user_field, item_field, time_field = _fields_of(reviews, record)
        user_ids.append(users.setdefault(records.name(reviews, number, record, user_field), len(users)))
        item_ids.append(items.setdefault(records.name(reviews, number, record, item_field), len(items)))
        times.append(records.integer(reviews, number, record, time_field))
    user_names, user = _sorted(users, user_ids)
    item_names, item = _sorted(items, item_ids)
    order = np.lexsort((np.array(times), user))  # stable: ties keep the file's order

    category = _read_categories(meta, items)
    missing = [name for name in item_names.tolist() if name not in category]
    if len(missing) == len(items):
        raise ValueError(f"{meta} describes none of the {len(items)} items in {reviews}, whose first is {missing[0]!r}")
    if missing:
        warnings.warn(
            f"{meta} does not describe {len(missing)} of the {len(items)} items in {reviews}, {missing[0]!r} for one: "
            f"their category is {UNKNOWN_CATEGORY!r}",
            stacklevel=2,
        )
    names = [category.get(name, UNKNOWN_CATEGORY) for name in item_names.tolist()]
    category_names, category_ids = np.unique(np.array(names, dtype=str), return_inverse=True)
    return Interactions(
        user_offsets=np.concatenate([[0], np.cumsum(np.bincount(user))]),
        item_ids=item[order],
        category_ids=category_ids,
        n_categories=len(category_names),
        user_names=user_names,
        item_names=item_names,
        category_names=category_names,
    )


def _fields_of(path: Path, record: dict) -> tuple[str, str, str]:
    """`(user, item, time)`: what the edition of the first review calls them."""
    for edition in EDITIONS:
        if edition.user in record:
            item = next((name for name in edition.items if name in record), edition.items[0])
            return edition.user, item, edition.time
    known = " or ".join(f"({edition.user}, {'/'.join(edition.items)}, {edition.time})" for edition in EDITIONS)
    got = text.shown(sorted(map(str, record)))
    raise ValueError(f"{path}: line 1: a review must have the fields {known}, got {got}")


def _sorted(ids: dict[str, int], used: array) -> tuple[np.ndarray, np.ndarray]:
    """`(names [n], places)`: the names in order, and for each of `used` the place of its name among them."""
    names = sorted(ids)
    place = np.empty(len(names), np.int64)
    place[[ids[name] for name in names]] = np.arange(len(names))
    return np.array(names, dtype=str), place[np.array(used)]


def _read_categories(path: Path, wanted: dict[str, int]) -> dict[str, str]:
    """Item name -> category, for the `wanted` items."""
    category = {}
    for number, line in records.lines(path):
        if _is_of_another_item(line, wanted):
            continue
        record = records.parsed(path, number, line)
        name = records.name(path, number, record, "parent_asin" if "parent_asin" in record else "asin")
        if name in wanted:
            category[name] = _category(path, number, record)
    return category


def _is_of_another_item(line: str, wanted: dict[str, int]) -> bool:
    """Whether a line of Python literals plainly describes no wanted item, and need not be parsed.

    Most lines are such ones, and a Python literal takes ten times as long as JSON: 110 microseconds for 1,300
    characters. A line in which another `asin` stands is parsed, so that two records on one line are noticed.
    """
    first = _FIRST_KEY.match(line)
    return first is not None and first[2] not in wanted and line.count("asin") == 1 and line.rstrip().endswith("}")


def _category(path: Path, number: int, record: dict) -> str:
    """The last name of the last path that has one, else the main category, else "unknown"."""
    field = next((name for name in ("categories", "category") if record.get(name) not in _NOTHING), "categories")
    value = record.get(field)
    paths = [] if value in _NOTHING else value if isinstance(value, list) else [value]
    names = [name for each in paths for name in (each if isinstance(each, list) else [each])]
    if not all(isinstance(name, str) and "\0" not in name for name in names):
        got = text.shown(value)
        raise ValueError(f"{path}: line {number}: {field} must be names or lists of names, without NUL, got {got}")
    named = [name for name in names if name]
    if named:
        return named[-1]
    if record.get("main_category") in _NOTHING:
        return UNKNOWN_CATEGORY
    return records.name(path, number, record, "main_category")
