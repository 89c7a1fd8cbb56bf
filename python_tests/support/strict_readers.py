"""Strict readers of every data set: what the package's readers are held to where a file is damaged.

They share nothing with the package: one regular expression, `json` or `ast` a line, and no NumPy. `files` maps names to
bytes; a reader returns `{user: [(item, categories, label), ...]}`, oldest behaviour first, or raises `Refused`.
"""

import ast
import json
import re
from fractions import Fraction

GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")


class Refused(Exception):
    """A strict reader refuses a file."""


def _demand(condition):
    if not condition:
        raise Refused


def _lines(content, text=False, fallback=None):
    """Lines that end at a newline alone; those of numbers hold no carriage return."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    _demand(content.endswith(b"\n"))
    lines = [line.removesuffix(b"\r") for line in content.split(b"\n")[:-1]]
    if not text:
        _demand(not any(b"\r" in line for line in lines))
        return lines
    try:
        return [line.decode() for line in lines]
    except UnicodeDecodeError:
        _demand(fallback)
        return [line.decode(fallback) for line in lines]


def _number(digits):
    _demand(re.fullmatch(rb"[0-9]+", digits) and int(digits) < 2**63)
    return int(digits)


def _numbers(line):
    return [_number(word) for word in re.split(rb"[ \t]+", line.strip(b" \t")) if word]


def _table(content):
    rows = [_numbers(line) for line in _lines(content)]
    _demand(all(len(row) == 2 for row in rows) and len(dict(rows)) == len(rows))
    return {item: (category,) for item, category in rows}


def prepared(files):
    categories = _table(files["item_cate.txt"])
    users = {}
    for line in _lines(files["seq.txt"]):
        row = _numbers(line)
        _demand(row and row[0] not in users and all(item in categories for item in row[1:]))
        users[row[0]] = [(item, categories[item], None) for item in row[1:]]
    return users


def released_rows(files):
    """`[(user, history, candidates, labels)]` over the items of the prepared text beside the rows."""
    prepared(files)
    categories = _table(files["item_cate.txt"])
    rows = []
    for line in _lines(files["rows.txt"]):
        fields = [_numbers(field) for field in line.split(b"|")]
        _demand(len(fields) == 4 and all(len(fields[at]) == 1 for at in (0, 2, 3)))
        rows.append((fields[0][0], fields[1], fields[2][0], fields[3][0]))
    labelled = [row[3] in (0, 1) for row in rows]
    _demand(all(labelled) or 2 * sum(labelled) <= len(labelled))
    if all(labelled):
        rows = [(user, history, [item], [label]) for user, history, item, label in rows]
    else:
        rows = [(user, history, [item, other], [1, 0]) for user, history, item, other in rows]
    _demand(all(item in categories for row in rows for item in row[1] + row[2]))
    return rows


def _by_time(behaviours, categories):
    users = {}
    for user, item, time, label in behaviours:
        _demand(item in categories)
        users.setdefault(user, []).append((time, item, label))
    return {
        user: [(item, categories[item], label) for _, item, label in sorted(rows, key=lambda row: row[0])]
        for user, rows in users.items()
    }


def _ratings(content, separator, header):
    lines = _lines(content)
    _demand(not header or lines.pop(0) == header)
    _demand(lines)
    rows = []
    for line in lines:
        fields = line.split(separator)
        _demand(len(fields) == 4 and re.fullmatch(rb"[0-9]+(\.[0-9]+)?", fields[2]))
        rating = Fraction(fields[2].decode())
        _demand(Fraction(1, 2) <= rating <= 5 and all(int(part) < 2**63 for part in fields[2].split(b".")))
        rows.append((_number(fields[0]), _number(fields[1]), _number(fields[3]), float(rating >= 4)))
    return rows


def _movies(rows):
    movies = {}
    for number, genres in rows:
        movie = _number(number.encode())
        _demand(movie not in movies and (not genres or all(genres)))
        movies[movie] = tuple(dict.fromkeys(genres)) or ("(no genres listed)",)
    return movies


def _csv_fields(line):
    field = r'(?:"(?:[^"]|"")*"|(?:[^",\r][^,\r]*)?)'
    found = re.fullmatch(f"({field}),({field}),({field})", line, re.DOTALL)
    _demand(found)
    return [each[1:-1].replace('""', '"') if each.startswith('"') else each for each in found.groups()]


def movielens_csv(files):
    lines = _lines(files["movies.csv"], text=True)
    _demand(lines[0] == "movieId,title,genres")
    fields = [_csv_fields(line) for line in lines[1:]]
    movies = _movies((number, genres.split("|") if genres else []) for number, _, genres in fields)
    return _by_time(_ratings(files["ratings.csv"], b",", b"userId,movieId,rating,timestamp"), movies)


def movielens_dat(files):
    fields = [line.split("::") for line in _lines(files["movies.dat"], text=True, fallback="latin-1")]
    _demand(all(len(each) == 3 for each in fields))
    movies = _movies((number, genres.split("|") if genres else []) for number, _, genres in fields)
    return _by_time(_ratings(files["ratings.dat"], b"::", None), movies)


def movielens_100k(files):
    fields = [line.split("|") for line in _lines(files["u.item"], text=True, fallback="latin-1")]
    _demand(all(len(each) == 24 and set(each[5:]) <= {"0", "1"} for each in fields))
    movies = _movies(
        (each[0], [name for name, flag in zip(GENRES, each[5:], strict=True) if flag == "1"]) for each in fields
    )
    return _by_time(_ratings(files["u.data"], b"\t", None), movies)


def _records(content, wanted=None):
    """One dict a line; of metadata in Python literals, those of other than the `wanted` items are left unread."""
    for line in _lines(content, text=True):
        other = re.match(r"\{'asin': '([^'\\]*)'[,}]", line)
        if wanted and other and other[1] not in wanted and line.count("asin") == 1 and line.rstrip().endswith("}"):
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            _demand(line.startswith("{"))
            try:
                record = ast.literal_eval(line)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                raise Refused from None
        _demand(isinstance(record, dict))
        yield record


def _name(value):
    _demand(isinstance(value, str) and value and "\0" not in value)
    return value


def reviews(files):
    (reviews,) = (content for name, content in files.items() if not name.startswith("meta"))
    (meta,) = (content for name, content in files.items() if name.startswith("meta"))
    reviews = list(_records(reviews))
    new = "reviewerID" not in reviews[0]
    item = "asin" if not new or "parent_asin" not in reviews[0] else "parent_asin"
    user, time = ("user_id", "timestamp") if new else ("reviewerID", "unixReviewTime")
    for review in reviews:
        _demand(type(review.get(time)) is int and abs(review[time]) < 2**63)
    behaviours = [(_name(each.get(user)), _name(each.get(item)), each[time], None) for each in reviews]
    categories = {name: ("unknown",) for _, name, _, _ in behaviours}
    known = set()
    for record in _records(meta, categories):
        name = _name(record.get("parent_asin" if "parent_asin" in record else "asin"))
        if name not in categories:
            continue
        known.add(name)
        paths = record.get("categories") or record.get("category") or []
        _demand(isinstance(paths, (list, str)))
        flat = []
        for path in [paths] if isinstance(paths, str) else paths:
            flat += path if isinstance(path, list) else [path]
        _demand(all(isinstance(each, str) and "\0" not in each for each in flat))
        named = [each for each in flat if each]
        main = record.get("main_category")
        categories[name] = (named[-1] if named else _name(main) if main else "unknown",)
    _demand(known)
    return _by_time(behaviours, categories)
