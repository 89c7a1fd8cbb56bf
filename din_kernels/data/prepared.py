"""Prepared text of ids, and the rows of the paper's released code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from din_kernels.data import arguments, text
from din_kernels.data.interactions import Interactions, Samples


def load_amazon_prepared(
    sequences: str | Path, item_categories: str | Path | None = None, items: str = "seen"
) -> Interactions:
    """Prepared text: `user item item ...` a line, oldest first, and `item category` a line.

    Args:
        sequences: the sequence file, or a folder that holds `seq.txt`, or one `seq*.txt` alone.
        item_categories: by default `item_cate.txt` beside the sequences.
        items: the vocabulary, from which negatives are drawn: "seen" in the sequences, or all "listed" with a category.

    Returns:
        `Interactions`; `user_names`, `item_names` and `category_names` are the files' ids (int64, the last two sorted).

    Raises:
        ValueError: a truncated or malformed line, a user or an item given twice, or an item without a category, with
            file and line.
        FileNotFoundError: no such file.
    """
    if items not in ("seen", "listed"):
        raise ValueError(f"items must be 'seen' or 'listed', got {items!r}")
    sequences = find_sequences(Path(sequences))
    categories = Path(item_categories) if item_categories is not None else sequences.parent / "item_cate.txt"
    table = text.parse_table(categories, text.read_bytes(categories), 2)
    _refuse_repeats(categories, table[:, 0], "item")
    values, offsets, _ = text.parse_lines(sequences, text.read_bytes(sequences))
    if (np.diff(offsets) == 0).any():
        line = int(np.flatnonzero(np.diff(offsets) == 0)[0]) + 1
        raise ValueError(f"{sequences}: line {line}: expected `user item item ...`, got an empty line")
    users = values[offsets[:-1]]
    _refuse_repeats(sequences, users, "user")
    is_item = np.ones(len(values), bool)
    is_item[offsets[:-1]] = False
    raw_items = values[is_item]

    table = table[np.argsort(table[:, 0], kind="stable")]
    place, known = text.dense_ids(raw_items, table[:, 0])
    if not known.all():
        at = int(np.flatnonzero(is_item)[np.flatnonzero(~known)[0]])
        line = int(np.searchsorted(offsets, at, "right"))
        raise ValueError(f"{sequences}: line {line}: item {values[at]} has no category in {categories}")
    if items == "seen":
        kept = np.zeros(len(table), bool)
        kept[place] = True
        table, place = table[kept], (np.cumsum(kept) - 1)[place]
    category_names, category_ids = np.unique(table[:, 1], return_inverse=True)
    return Interactions(
        user_offsets=offsets - np.arange(len(offsets)),
        item_ids=place,
        category_ids=category_ids.reshape(-1),
        n_categories=len(category_names),
        user_names=users,
        item_names=table[:, 0],
        category_names=category_names,
    )


def load_released_rows(path: str | Path, catalogue: Interactions) -> tuple[Interactions, Samples]:
    """The released code's rows: `user|history|positive|negative` (test) or `user|history|item|label` (training).

    A file is read as labelled rows when all its last fields are 0 or 1. One of which most are, but not all, is refused:
    items may be called 0 and 1 too, so that one damaged label would turn all the others into negatives.

    Args:
        catalogue: `load_amazon_prepared(..., items="listed")`, whose items and categories the rows use.

    Returns:
        The rows' histories as `Interactions` (one "user" a row, named by the row's user), and the `Samples` over them.

    Raises:
        TypeError: catalogue is no `Interactions`.
        ValueError: a malformed line, or an item that `catalogue` does not hold, with file and line; or a catalogue
            whose item names are not whole numbers in rising order.
    """
    path = Path(path)
    item_names = _sorted_names(catalogue)
    data = text.read_bytes(path)
    raw = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(raw == ord("\n"))
    bars = np.flatnonzero(raw == ord("|"))
    per_line = np.diff(np.searchsorted(bars, newlines), prepend=0)
    if (per_line != 3).any():
        at = int(np.flatnonzero(per_line != 3)[0])
        raise ValueError(
            f"{path}: line {at + 1}: expected `user|history|item|item or label`, got {per_line[at] + 1} fields"
        )
    values, offsets, _ = text.parse_lines(path, data, ends=b"|\n")  # group g is field g % 4 of row g // 4
    width = np.diff(offsets).reshape(-1, 4)
    wrong = (width[:, [0, 2, 3]] != 1).any(1)
    if wrong.any():
        line = int(np.flatnonzero(wrong)[0]) + 1
        raise ValueError(
            f"{path}: line {line}: user, item and last field must be one number each, got {width[line - 1]}"
        )
    begins = offsets[:-1].reshape(-1, 4)
    is_label = values[begins[:, 3]] <= 1
    labelled = bool(is_label.all())
    if not labelled and 2 * is_label.sum() > len(is_label):
        line = int(np.flatnonzero(~is_label)[0])
        last, labels = values[begins[line, 3]], is_label.sum()
        raise ValueError(
            f"{path}: line {line + 1}: last field must be 0 or 1 as on {labels} of {len(is_label)} lines, got {last}"
        )
    is_history = np.ones(len(values), bool)
    is_history[begins[:, [0, 2, 3]]] = False
    raw_candidates = values[begins[:, [2] if labelled else [2, 3]]]

    def dense(raw_items, row):
        ids, known = text.dense_ids(raw_items, item_names)
        if not known.all():
            at = int(np.flatnonzero(~known)[0])
            raise ValueError(f"{path}: line {row(at) + 1}: item {raw_items[at]} is not in the catalogue")
        return ids

    rows, columns = raw_candidates.shape
    history = dense(
        values[is_history], lambda at: np.searchsorted(offsets, np.flatnonzero(is_history)[at], "right") // 4
    )
    candidates = dense(raw_candidates.ravel(), lambda at: at // columns).reshape(rows, columns)
    user_offsets = np.concatenate([[0], np.cumsum(width[:, 1])])
    labels = np.tile(np.array([1, 0], np.float32), (rows, 1))
    if labelled:
        labels = values[begins[:, 3], None].astype(np.float32)
    interactions = replace(
        catalogue, user_offsets=user_offsets, item_ids=history, user_names=values[begins[:, 0]], labels=None
    )
    return interactions, Samples(np.arange(rows), user_offsets[:-1], width[:, 1], candidates, labels)


def _sorted_names(catalogue: Interactions) -> np.ndarray:
    """The item names of `catalogue`, in which a binary search finds the raw items."""
    arguments.is_a("catalogue", catalogue, Interactions)
    names = np.asarray(catalogue.item_names)
    if catalogue.item_names is None or names.dtype.kind not in "iu" or (np.diff(names) <= 0).any():
        got = "none" if catalogue.item_names is None else np.array2string(names, threshold=4)
        raise ValueError(f"catalogue must have item_names that are whole numbers in rising order, got {got}")
    return names


def find_sequences(path: Path) -> Path:
    """The sequence file that `path` names, or the only possible one in the folder `path`."""
    if not path.is_dir():
        return path
    if (path / "seq.txt").exists():
        return path / "seq.txt"
    found = sorted(path.glob("seq*.txt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"path must be a sequence file or a folder with one seq*.txt, got {path} with {names}")
    return found[0]


def _refuse_repeats(path: Path, ids: np.ndarray, what: str) -> None:
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if len(again):
        line = int(order[again + 1].min())
        raise ValueError(f"{path}: line {line + 1}: {what} {ids[line]} was given on an earlier line")
