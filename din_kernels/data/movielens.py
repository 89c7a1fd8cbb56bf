"""MovieLens: ratings in time order, positive from 4 up, and movies with one or several genres."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from din_kernels.data import text
from din_kernels.data.interactions import Interactions

POSITIVE_RATING = 4  # a whole number, so that fractions need not be read
_CHUNK = 16_000_000  # bytes parsed at once: the parse needs some 20 bytes per byte of text
_NO_GENRE = "(no genres listed)"


def load_movielens(folder: str | Path) -> Interactions:
    """`ratings.csv` and `movies.csv` (`userId,movieId,rating,timestamp`, with a header), or the `.dat` files (`::`).

    A rating of 4 or more is positive (label 1), every other one negative (paper, section 6.1). A user's ratings are
    sorted by time; ties keep the file's order. The items are the rated movies; a movie's genres are its categories.

    Raises:
        ValueError: a truncated or malformed line, a movie given twice, or a rated movie that is not in the movies file,
            with file and line.
        FileNotFoundError: the folder holds neither pair of files.
    """
    folder = Path(folder)
    for suffix in ("csv", "dat"):
        ratings, movies = folder / f"ratings.{suffix}", folder / f"movies.{suffix}"
        if ratings.exists() and movies.exists():
            break
    else:
        raise FileNotFoundError(f"{folder} must hold ratings.csv and movies.csv, or ratings.dat and movies.dat")
    user, movie, positive, time = _read_ratings(ratings)
    genres_of = _read_movies(movies)
    item_names, item_ids = np.unique(movie, return_inverse=True)
    for name in item_names.tolist():
        if name not in genres_of:
            line = int(np.flatnonzero(movie == name)[0]) + (2 if suffix == "csv" else 1)
            raise ValueError(f"{ratings}: line {line}: movie {name} is not in {movies}")
    genres = [genres_of[name] for name in item_names.tolist()]
    category_names = sorted({genre for some in genres for genre in some})
    number = {name: at for at, name in enumerate(category_names)}
    user_names, user_ids = np.unique(user, return_inverse=True)
    order = np.lexsort((time, user_ids))  # stable: ties keep the file's order
    lengths = np.bincount(user_ids, minlength=len(user_names))
    return Interactions(
        user_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=item_ids[order].astype(np.int64),
        category_ids=np.array([number[genre] for some in genres for genre in some], np.int64),
        category_offsets=np.concatenate([[0], np.cumsum([len(some) for some in genres])]).astype(np.int64),
        n_categories=len(category_names),
        labels=positive[order].astype(np.float32),
        user_names=user_names,
        item_names=item_names,
        category_names=category_names,
    )


def _read_ratings(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`(user, movie, positive, time)`, one entry per line after the header."""
    data = text.read_bytes(path)
    separator, header = (b"::", b"") if path.suffix == ".dat" else (b",", b"userId,movieId,rating,timestamp")
    at, line = 0, 1
    if header:
        at, line = data.index(text.NEWLINE) + 1, 2
        if data[:at].strip() != header:
            got = data[:at].decode(errors="replace").strip()
            raise ValueError(f"{path}: line 1: expected {header.decode()!r}, got {got!r}")
    parts = [np.zeros((0, 4), np.int64)]
    while at < len(data):
        end = data.find(text.NEWLINE, min(at + _CHUNK, len(data) - 1)) + 1
        parts.append(_parse_ratings(path, data[at:end], separator, line))
        line += len(parts[-1])
        at = end
    user, movie, rating, time = np.concatenate(parts).T
    return user, movie, rating >= POSITIVE_RATING, time


def _parse_ratings(path: Path, data: bytes, separator: bytes, first_line: int) -> np.ndarray:
    """`[lines, 4]` int64: user, movie, whole part of the rating, timestamp."""
    # What is left of a line without its digits: user, movie, rating (with or without a fraction), timestamp.
    whole, fraction = separator * 3, separator * 2 + b"." + separator
    left = data.translate(None, b"0123456789\r")
    if not set(left.splitlines()) <= {whole, fraction}:
        at = next(at for at, kind in enumerate(left.splitlines()) if kind not in (whole, fraction))
        raise _malformed(path, data, at, first_line)
    values, offsets = text.parse_lines(path, data, b"\r.,:", first_line=first_line)
    dots = np.array([kind == fraction for kind in left.splitlines()])
    empty = np.flatnonzero(np.diff(offsets) != 4 + dots)  # a field without a digit
    if len(empty):
        raise _malformed(path, data, int(empty[0]), first_line)
    begin = offsets[:-1]
    return np.stack([values[begin], values[begin + 1], values[begin + 2], values[offsets[1:] - 1]], 1)


def _malformed(path: Path, data: bytes, at: int, first_line: int) -> ValueError:
    shown = data.splitlines()[at].decode(errors="replace")[:60]
    return ValueError(f"{path}: line {at + first_line}: expected user, movie, rating and timestamp, got {shown!r}")


def _read_movies(path: Path) -> dict[int, list[str]]:
    """Movie -> its genres, at least one (the files' own word for none is kept as a genre)."""
    genres = {}
    for number, fields in _movie_rows(path):
        if len(fields) != 3 or not fields[0].isdigit():
            raise ValueError(f"{path}: line {number}: expected movie, title and genres, got {fields!r}")
        movie = int(fields[0])
        if movie in genres:
            raise ValueError(f"{path}: line {number}: movie {movie} was given on an earlier line")
        genres[movie] = list(dict.fromkeys(name for name in fields[2].split("|") if name)) or [_NO_GENRE]
    return genres


def _movie_rows(path: Path):
    data = text.read_bytes(path)
    if path.suffix == ".dat":  # MovieLens 1M and 10M: titles in Latin-1
        for number, line in enumerate(data.decode("latin-1").splitlines(), 1):
            yield number, line.split("::")
        return
    rows = csv.reader(data.decode("utf-8").splitlines())
    header = next(rows)
    if header != ["movieId", "title", "genres"]:
        raise ValueError(f"{path}: line 1: expected 'movieId,title,genres', got {','.join(header)!r}")
    for fields in rows:
        yield rows.line_num, fields
