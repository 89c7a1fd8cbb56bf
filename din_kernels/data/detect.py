"""Which data set a path holds."""

from __future__ import annotations

from pathlib import Path

from din_kernels.data.interactions import Interactions
from din_kernels.data.movielens import load_movielens
from din_kernels.data.prepared import find_sequences, load_amazon_prepared
from din_kernels.data.reviews import load_amazon_reviews


def load(path: str | Path) -> Interactions:
    """Loads MovieLens, raw Amazon reviews or prepared text, by what `path` holds: a folder, or the file of behaviours.

    A folder with `ratings.*` is MovieLens; with one `reviews*.json[.gz]` and one `meta*.json[.gz]`, raw Amazon reviews;
    with `item_cate.txt`, prepared text.

    Raises:
        FileNotFoundError: no such path.
        ValueError: a folder that holds none of them, or several, and what the loaders raise.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path must exist, got {path}")
    folder = path if path.is_dir() else path.parent
    if path.name.startswith("ratings.") or (path.is_dir() and list(path.glob("ratings.*"))):
        return load_movielens(folder)
    if path.is_file() and not path.name.endswith((".json", ".json.gz")):
        return load_amazon_prepared(path)
    reviews = [path] if path.is_file() else _json_files(folder, "reviews")
    if reviews:
        meta = _json_files(folder, "meta")
        if len(reviews) != 1 or len(meta) != 1:
            names = ", ".join(file.name for file in reviews + meta)
            raise ValueError(f"path must lead to one reviews file and one meta file, got {names} in {folder}")
        return load_amazon_reviews(reviews[0], meta[0])
    if (folder / "item_cate.txt").exists():
        return load_amazon_prepared(find_sequences(folder))
    raise ValueError(
        "path must hold ratings.csv or .dat, reviews*.json.gz with meta*.json.gz, or seq*.txt with item_cate.txt, "
        f"got {path}"
    )


def _json_files(folder: Path, start: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"{start}*") if file.name.endswith((".json", ".json.gz")))
