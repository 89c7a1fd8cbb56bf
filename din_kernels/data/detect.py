"""Which data set a path holds."""

from __future__ import annotations

import re
from pathlib import Path

from din_kernels.data import movielens
from din_kernels.data.interactions import Interactions
from din_kernels.data.prepared import find_sequences, load_amazon_prepared
from din_kernels.data.reviews import load_amazon_reviews

UNDERSTOOD = (
    "MovieLens (ratings.csv with movies.csv, ratings.dat with movies.dat, u.data with u.item), Amazon reviews "
    "(reviews*.json, or *.jsonl, with meta*.json or meta*.jsonl, each also .gz), prepared text (seq*.txt with "
    "item_cate.txt)"
)
_ENDINGS = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
_MAGIC = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip-compressed file",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2-compressed file",
    b"\xfd7zXZ": "an xz-compressed file",
    b"(\xb5/\xfd": "a zstd-compressed file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy file",
    b"SQLite": "an SQLite database",
}


def load(path: str | Path) -> Interactions:
    """Loads MovieLens, Amazon reviews or prepared text, by what `path` holds: a folder, or the file of behaviours.

    - MovieLens: `ratings.csv` with `movies.csv`, `ratings.dat` with `movies.dat`, or `u.data` with `u.item`.
    - Amazon reviews of 2014, 2018 or 2023: `reviews*.json`, or any other `*.json` or `*.jsonl`, with `meta*.json` or
      `meta*.jsonl` beside it, each also with `.gz`. Of several metadata files the one that is named like the reviews
      is taken: `meta_Beauty.json.gz` for `reviews_Beauty_5.json.gz`.
    - Prepared text: `seq*.txt`, or any other text of numbers, with `item_cate.txt` beside it.

    Raises:
        FileNotFoundError: no such path.
        TypeError: path is no path.
        ValueError: a path that holds none of them, or several, with what was found; and what the loaders raise.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be str or Path, got {type(path).__name__}")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path must exist, got {path}")
    names = {files.ratings for files in movielens.EDITIONS}
    if path.name in names or (path.is_dir() and any((path / name).exists() for name in names)):
        return movielens.load_movielens(path)
    reviews = _reviews(path)
    if reviews:
        if len(reviews) > 1:
            found = ", ".join(file.name for file in reviews)
            raise ValueError(f"path must name one of the reviews files, got {path} with {found}")
        return load_amazon_reviews(reviews[0], _meta_of(reviews[0]))
    folder = path if path.is_dir() else path.parent
    if (folder / "item_cate.txt").exists() and (path.is_dir() or _may_be_prepared(path)):
        return load_amazon_prepared(find_sequences(path))
    raise ValueError(f"path must hold {UNDERSTOOD}, got {path}, {_described(path)}")


def _is_meta(file: Path) -> bool:
    return file.name.lower().startswith("meta")


def _records_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.endswith(_ENDINGS) and file.is_file())


def _reviews(path: Path) -> list[Path]:
    """The files of reviews that `path` may mean; in a folder, those called so, or else all that are not metadata."""
    if path.is_file():
        return [path] if path.name.endswith(_ENDINGS) and not _is_meta(path) else []
    found = [file for file in _records_in(path) if not _is_meta(file)]
    return [file for file in found if file.name.startswith("reviews")] or found


def _meta_of(reviews: Path) -> Path:
    """The metadata beside `reviews`: the only file, or the one of the same category of goods."""
    found = [file for file in _records_in(reviews.parent) if _is_meta(file)]
    same = [file for file in found if _subject(file) == _subject(reviews)]
    chosen = same if len(found) > 1 else found
    if len(chosen) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(
            f"path must lead to one reviews file and one meta file, got {reviews.name} and metadata {names} in "
            f"{reviews.parent} (expected meta_{_subject(reviews)}{_ending(reviews)})"
        )
    return chosen[0]


def _ending(file: Path) -> str:
    return next(ending for ending in sorted(_ENDINGS, key=len, reverse=True) if file.name.endswith(ending))


def _subject(file: Path) -> str:
    """`Beauty` of `reviews_Beauty_5.json.gz`, `Beauty_5.json.gz`, `meta_Beauty.json` and `Beauty.jsonl`."""
    return re.sub(r"^(reviews|meta)_|_5$", "", file.name.removesuffix(_ending(file)))


def _may_be_prepared(file: Path) -> bool:
    """Whether a file may be text of numbers, so that the loader's own complaints about it are to the point."""
    return file.suffix.lower() not in (".csv", ".json", ".jsonl", ".gz") and _magic(file) is None and not _is_meta(file)


def _magic(file: Path) -> str | None:
    with open(file, "rb") as opened:
        start = opened.read(8)
    return next((words for magic, words in _MAGIC.items() if start.startswith(magic)), None)


def _described(path: Path) -> str:
    """What was found at `path`, in words."""
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        return f"a folder with {shown}" if names else "an empty folder"
    if _is_meta(path):
        return "the metadata of reviews; name the file of the reviews"
    beside = "" if (path.parent / "item_cate.txt").exists() else ", without item_cate.txt beside it"
    kind = _magic(path)
    if kind is None:
        with open(path, "rb") as opened:
            start = opened.readline(60)
        kind = f"a file that starts with {start.decode(errors='replace').strip()!r}" if start else "an empty file"
    return kind + beside
