"""MovieLens: ratings in time order, positive from 4 up, and movies with one or several genres."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from din_kernels.data import text
from din_kernels.data.interactions import Interactions

POSITIVE_RATING = 4  # a whole number, so that fractions need not be read
_CHUNK = 16_000_000  # bytes parsed at once: the parse needs some 20 bytes per byte of text
_NO_GENRE = "(no genres listed)"
# MovieLens 100K has a column of 0 or 1 for each of these, in the order of its u.genre.
_GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()
_FIELDS_100K = 5  # movie, title, release date, date on video, address: what stands before the genres


class Files(NamedTuple):
    """How one edition of MovieLens is written.

    Args:
        ratings, movies: names of its files.
        separator: between the fields of the ratings, and of the movies except in 100K.
        header: first line of the ratings, empty where there is none.
        fallback: encoding of the movies where they are not UTF-8: those of 100K and 1M are Latin-1, 10M's are UTF-8.
    """

    ratings: str
    movies: str
    separator: bytes
    header: bytes = b""
    fallback: str | None = None


EDITIONS = (
    Files("ratings.csv", "movies.csv", b",", b"userId,movieId,rating,timestamp"),  # 20M, 25M, 32M, latest
    Files("ratings.dat", "movies.dat", b"::", fallback="latin-1"),  # 1M, 10M
    Files("u.data", "u.item", b"\t", fallback="latin-1"),  # 100K
)


def load_movielens(path: str | Path) -> Interactions:
    """MovieLens of any size, from its folder or its file of ratings.

    - 20M, 25M, 32M, latest: `ratings.csv` (`userId,movieId,rating,timestamp`) and `movies.csv`, each with a header.
    - 1M, 10M: `ratings.dat` and `movies.dat`, with `::` between the fields.
    - 100K: `u.data`, with tabs, and `u.item`, with bars and a column per genre.

    A rating of 4 or more is positive (label 1), every other one negative (paper, section 6.1). A user's ratings are
    sorted by time; ties keep the file's order. The items are the rated movies; a movie's genres are its categories.

    Raises:
        ValueError: a truncated or malformed line, a rating outside 0.5..5, a movie given twice, a rated movie that is
            not in the movies file, or no rating at all, with file, line and value; or a folder with several editions.
        FileNotFoundError: no pair of files.
    """
    folder, files = _find(Path(path))
    ratings, movies = folder / files.ratings, folder / files.movies
    user, movie, positive, time = _read_ratings(ratings, files)
    genres_of = _read_movies(movies, files)
    item_names, item_ids = np.unique(movie, return_inverse=True)
    for name in item_names.tolist():
        if name not in genres_of:
            line = int(np.flatnonzero(movie == name)[0]) + (2 if files.header else 1)
            raise ValueError(f"{ratings}: line {line}: movie {name} is not in {movies}")
    genres = [genres_of[name] for name in item_names.tolist()]
    category_names = sorted({genre for some in genres for genre in some})
    number = {name: at for at, name in enumerate(category_names)}
    user_names, user_ids = np.unique(user, return_inverse=True)
    order = np.lexsort((time, user_ids))  # stable: ties keep the file's order
    lengths = np.bincount(user_ids, minlength=len(user_names))
    return Interactions(
        user_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        item_ids=item_ids[order],
        category_ids=np.array([number[genre] for some in genres for genre in some], np.int64),
        category_offsets=np.concatenate([[0], np.cumsum([len(some) for some in genres])]),
        n_categories=len(category_names),
        labels=positive[order],
        user_names=user_names,
        item_names=item_names,
        category_names=category_names,
    )


def _find(path: Path) -> tuple[Path, Files]:
    """The folder, and the edition of which it holds both files, or to which the file `path` belongs."""
    folder = path if path.is_dir() else path.parent
    asked = [files for files in EDITIONS if path.is_dir() or path.name in (files.ratings, files.movies)]
    found = [files for files in asked if (folder / files.ratings).exists() and (folder / files.movies).exists()]
    if not found:
        pairs = ", or ".join(f"{files.ratings} and {files.movies}" for files in asked or EDITIONS)
        raise FileNotFoundError(f"{folder} must hold {pairs}")
    if len(found) > 1:
        names = ", ".join(files.ratings for files in found)
        raise ValueError(f"path must name one of the ratings in {folder}, got the folder with {names}")
    return folder, found[0]


def _read_ratings(path: Path, files: Files) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`(user, movie, positive, time)`, one entry per line after the header."""
    data = text.read_bytes(path)
    at, line = 0, 1
    if files.header:
        at, line = data.index(text.NEWLINE) + 1, 2
        header = data[:at].removesuffix(text.NEWLINE).removesuffix(b"\r")
        if header != files.header:
            got = text.shown(header.decode(errors="replace"))
            raise ValueError(f"{path}: line 1: expected {files.header.decode()!r}, got {got}")
    if at == len(data):
        raise ValueError(f"{path}: line {line}: expected at least one rating, got none")
    parts = []
    while at < len(data):
        end = data.find(text.NEWLINE, min(at + _CHUNK, len(data) - 1)) + 1
        parts.append(_parse_ratings(path, data[at:end], files.separator, line))
        line += len(parts[-1])
        at = end
    user, movie, rating, time = np.concatenate(parts).T
    return user, movie, rating >= POSITIVE_RATING, time


def _parse_ratings(path: Path, data: bytes, separator: bytes, first_line: int) -> np.ndarray:
    """`[lines, 4]` int64: user, movie, whole part of the rating, timestamp."""
    text.refuse_lone_returns(path, data, first_line)
    # What is left of a line without its digits: user, movie, rating (with or without a fraction), timestamp.
    whole, fraction = separator * 3, separator * 2 + b"." + separator
    kinds = data.translate(None, b"0123456789\r").split(text.NEWLINE)[:-1]
    if not set(kinds) <= {whole, fraction}:
        at = next(at for at, kind in enumerate(kinds) if kind not in (whole, fraction))
        raise _malformed(path, data, at, first_line)
    numbers = text.parse_lines(path, data, b"\r\t.,:", first_line=first_line)
    dots = np.array([kind == fraction for kind in kinds])
    empty = np.flatnonzero(np.diff(numbers.offsets) != 4 + dots)  # a field without a digit
    if len(empty):
        raise _malformed(path, data, int(empty[0]), first_line)
    begin, end, values = numbers.offsets[:-1], numbers.offsets[1:], numbers.values
    raw = np.frombuffer(data, np.uint8)
    if len(separator) == 2:  # "1:2::3::4:" has as many colons as "1::2::3::4"
        starts = numbers.starts[np.stack([begin + 1, begin + 2, end - 1])]
        torn = np.flatnonzero((raw[starts - 2] != separator[0]).any(0))
        if len(torn):
            raise _malformed(path, data, int(torn[0]), first_line)
    rating = values[begin + 2]
    # Where there is no fraction the next number is the timestamp; it is read, but not asked for.
    tenths = raw[numbers.starts[begin + 3]] - ord("0")
    low = (rating == 0) & ~(dots & (tenths >= 5))
    high = (rating > 5) | ((rating == 5) & dots & (values[begin + 3] > 0))
    outside = np.flatnonzero(low | high)
    if len(outside):
        at = int(outside[0])
        got = data.split(text.NEWLINE, at + 1)[at].split(separator)[2].decode()
        raise ValueError(f"{path}: line {at + first_line}: rating must lie in 0.5..5, got {text.shown(got)}")
    return np.stack([values[begin], values[begin + 1], rating, values[end - 1]], 1)


def _malformed(path: Path, data: bytes, at: int, first_line: int) -> ValueError:
    got = text.shown(data.split(text.NEWLINE, at + 1)[at].decode(errors="replace"))
    return ValueError(f"{path}: line {at + first_line}: expected user, movie, rating and timestamp, got {got}")


def _read_movies(path: Path, files: Files) -> dict[int, list[str]]:
    """Movie -> its genres, at least one (the files' own word for none is kept as a genre)."""
    lines = text.lines(path, files.fallback)
    rows = {b",": _csv_rows, b"::": _dat_rows, b"\t": _item_rows}[files.separator](path, lines)
    genres = {}
    for number, name, own in rows:
        movie = text.whole(path, number, "movie", name)
        if movie in genres:
            raise ValueError(f"{path}: line {number}: movie {movie} was given on an earlier line")
        genres[movie] = own or [_NO_GENRE]
    return genres


def _csv_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    if lines[0] != "movieId,title,genres":
        raise ValueError(f"{path}: line 1: expected 'movieId,title,genres', got {text.shown(lines[0])}")
    for number, line in enumerate(lines[1:], 2):
        # Each line is parsed by itself: no title holds a line's end, and an unbalanced quote swallows no other line.
        try:
            fields = next(csv.reader([line], strict=True))
        except csv.Error as error:
            expected = "expected movie, title and genres, with balanced quotes"
            raise ValueError(f"{path}: line {number}: {expected} ({error}), got {text.shown(line)}") from error
        yield _movie(path, number, fields)


def _dat_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    for number, line in enumerate(lines, 1):
        yield _movie(path, number, line.split("::"))


def _movie(path: Path, number: int, fields: list[str]) -> tuple[int, str, list[str]]:
    if len(fields) != 3:
        raise ValueError(f"{path}: line {number}: expected movie, title and genres, got {text.shown(fields)}")
    genres = fields[2].split("|") if fields[2] else []
    if not all(genres):
        raise ValueError(f"{path}: line {number}: genres must be names with '|' between, got {text.shown(fields[2])}")
    return number, fields[0], list(dict.fromkeys(genres))


def _item_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    columns = _FIELDS_100K + len(_GENRES_100K)
    for number, line in enumerate(lines, 1):
        fields = line.split("|")
        if len(fields) != columns:
            got = f"{len(fields)} in {text.shown(line)}"
            raise ValueError(f"{path}: line {number}: expected {columns} fields with '|' between, got {got}")
        flags = fields[_FIELDS_100K:]
        for genre, flag in zip(_GENRES_100K, flags, strict=True):
            if flag not in ("0", "1"):
                raise ValueError(f"{path}: line {number}: genre {genre} must be 0 or 1, got {text.shown(flag)}")
        yield number, fields[0], [genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1"]
