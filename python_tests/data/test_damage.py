"""Random damage of small files: a reader either refuses it by name or reads what an independent strict reader reads."""

import gzip
import json
import random
import re

import numpy as np
import pytest
from support import strict_readers

from din_kernels import data

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not describe", "ignore::SyntaxWarning", "ignore::DeprecationWarning:<unknown>"
)

CATALOGUE = "0 5\n1 5\n10 100\n20 500\n30 100\n40 900\n"
LISTED = {"item_cate.txt": CATALOGUE, "seq.txt": "7 10\n"}
RATED = [(9, 50, "4.0", 300), (9, 10, "3.5", 100), (4, 50, "5", 7), (9, 30, "0.5", 300), (4, 10, "4.5", 5)]
WHOLE = [(user, movie, rating.split(".")[0].replace("0", "1"), time) for user, movie, rating, time in RATED]
REVIEWED = [("B", "i2", 50), ("A", "i1", 30), ("A", "i3", 20), ("A", "i2", 30), ("A", "i0", 30)]
REVIEWS = [{"reviewerID": u, "asin": i, "reviewText": 'a "asin": "X"', "unixReviewTime": t} for u, i, t in REVIEWED]
META = [
    {"asin": "i0", "categories": [["Beauty", "Hair"], ["Beauty", "Skin"]]},
    {"title": "it's", "related": [{"asin": "i2"}], "asin": "i1", "categories": [["Beauty", "Hair"]]},
    {"asin": "i2", "categories": [[]]},
    {"asin": "i3", "categories": [["Nails"]], "text": "B\u00fccher"},
]
META_2023 = [
    {"main_category": "All", "parent_asin": each["asin"], "categories": [each["asin"]][:at]}
    for at, each in enumerate(META)
]
REVIEWS_2023 = [{"rating": 5.0, "asin": "v", "parent_asin": i, "user_id": u, "timestamp": t} for u, i, t in REVIEWED]


def _joined(rows, separator):
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def _dumped(rows, dump=json.dumps):
    return "".join(dump(row) + "\n" for row in rows)


def _flags(*genres):
    return "|".join(str(int(name in genres)) for name in strict_readers.GENRES)


FORMATS = {
    "prepared": (
        strict_readers.prepared,
        {"seq.txt": "7 30 10 20\n3 20 30\n5 10\n11 40 0 1 40\n", "item_cate.txt": CATALOGUE},
    ),
    "pairs": (strict_readers.released_rows, {"rows.txt": "7|30 10|20|40\n3||30|10\n12|10 20 30|1|20\n"} | LISTED),
    "labels": (
        strict_readers.released_rows,
        {"rows.txt": "7|30 10|20|1\n3||30|0\n12|10 20 30|1|1\n5|10|20|0\n"} | LISTED,
    ),
    "csv": (
        strict_readers.movielens_csv,
        {
            "ratings.csv": "userId,movieId,rating,timestamp\n" + _joined(RATED, ","),
            "movies.csv": 'movieId,title,genres\n10,"Heat, ""The"" (1995)",Action|Crime\n30,Up,(no genres listed)\n'
            "50,B\u00fcg,Crime\n60,Jaws,Horror\n",
        },
    ),
    "dat": (
        strict_readers.movielens_dat,
        {
            "ratings.dat": _joined(WHOLE, "::"),
            "movies.dat": "10::Heat: The::Action|Crime\n30::\u00c5::Drama\n50::Caf\u00e9::Crime\n",
        },
    ),
    "100k": (
        strict_readers.movielens_100k,
        {
            "u.data": _joined(WHOLE, "\t"),
            "u.item": f"10|Heat|1|||{_flags('Action', 'Crime')}\n"
            f"30|\u00c5|||x|{_flags('unknown')}\n50|B||||{_flags()}\n",
        },
    ),
    "2014": (strict_readers.reviews, {"reviews_T_5.json": _dumped(REVIEWS), "meta_T.json": _dumped(META, repr)}),
    "2018": (strict_readers.reviews, {"reviews_T_5.json": _dumped(REVIEWS), "meta_T.json": _dumped(META)}),
    "2023": (strict_readers.reviews, {"T.jsonl": _dumped(REVIEWS_2023), "meta_T.jsonl": _dumped(META_2023)}),
}
ROUNDS = 100  # damaged copies of each format
PIECES = [
    *(bytes([byte]) for byte in b"0123456789 \t\r\n\x0b\x0c\x00\x85\xff.,:;|-+e\"'\\[]{}"),
    *(
        "\u0663",
        "\u00b2",
        "\u2028",
        "\ufeff",
        str(2**63 - 1),
        str(2**63),
        str(2**70),
        "\r\n",
        "\n\n",
        '""',
        "[]",
        "null",
        "NaN",
    ),
]


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """`content` with a piece put in or taken out, a bit or two bytes changed, a line joined, doubled, lost, or cut."""
    at = rng.randrange(len(content))
    piece = rng.choice(PIECES)
    piece = piece if isinstance(piece, bytes) else piece.encode()
    lines = content.splitlines(keepends=True)
    row = rng.randrange(len(lines))
    kind = rng.randrange(9)
    if kind == 0:
        return content[:at] + piece + content[at:]
    if kind == 1:
        return content[:at] + piece + content[at + len(piece) :]
    if kind == 2:
        return content[:at] + content[at + rng.randint(1, 4) :]
    if kind == 3:
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 4:
        other = rng.randrange(len(content))
        swapped = bytearray(content)
        swapped[at], swapped[other] = swapped[other], swapped[at]
        return bytes(swapped)
    if kind == 5:
        lines[row] = lines[row].rstrip(b"\n") + rng.choice([b"", b"\r", b" "])
    elif kind == 6:
        lines.insert(rng.randrange(len(lines)), lines[row])
    elif kind == 7:
        del lines[row]
    else:
        return content[:at]
    return b"".join(lines)


def _read(folder, name):
    """What the package reads, in the form of the strict readers."""
    if name in ("pairs", "labels"):
        catalogue = data.load_amazon_prepared(folder, items="listed")
        interactions, samples = data.load_released_rows(folder / "rows.txt", catalogue)
        names = interactions.item_names
        return [
            (
                int(interactions.user_names[user]),
                names[interactions.items_of(user)].tolist(),
                names[samples.candidates[user]].tolist(),
                samples.labels[user].tolist(),
            )
            for user in range(len(samples))
        ]
    interactions = data.load(folder)
    users = {}
    for user, user_name in enumerate(np.asarray(interactions.user_names).tolist()):
        users[user_name] = []
        for place in range(interactions.user_offsets[user], interactions.user_offsets[user + 1]):
            item = interactions.item_ids[place : place + 1]
            categories = tuple(np.asarray(interactions.category_names)[interactions.categories_of(item)[0]].tolist())
            label = None if interactions.labels is None else float(interactions.labels[place])
            users[user_name].append((interactions.item_names[item[0]].item(), categories, label))
    return users


@pytest.mark.parametrize(
    ("name", "compressed"), [(name, False) for name in FORMATS] + [(name, True) for name in ("2014", "2018", "2023")]
)
def test_damage_is_refused_by_name_or_read_as_a_strict_reader_does(tmp_path, name, compressed):
    strict, texts = FORMATS[name]
    files = {file: text.encode() for file, text in texts.items()}
    rng = random.Random(f"{name} {compressed}")
    ending = ".gz" if compressed else ""

    def write(contents):
        for file, content in contents.items():
            (tmp_path / f"{file}{ending}").write_bytes(gzip.compress(content, 1) if compressed else content)

    write(files)
    assert _read(tmp_path, name) == strict(files)
    read = refused = 0
    for _ in range(ROUNDS):
        contents = dict(files)
        for _ in range(rng.choice([1, 1, 2])):
            file = rng.choice(list(contents))
            contents[file] = _damaged(contents[file], rng) or b"\n"
        write(contents)
        try:
            expected = strict(contents)
        except strict_readers.Refused:
            expected = None
        try:
            got = _read(tmp_path, name)
        except ValueError as error:
            # A reader says which file, and where in it, and refuses nothing that the strict reader takes.
            assert str(tmp_path) in str(error), contents
            assert re.search(r"line \d+: |describes none of", str(error)), contents
            assert expected is None, (str(error), contents)
            refused += 1
        else:
            assert got == expected, contents
            read += 1
    assert read > ROUNDS // 20 and refused > ROUNDS // 5, (read, refused)
