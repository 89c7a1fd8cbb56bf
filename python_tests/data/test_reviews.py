import gzip
import json

import numpy as np
import pytest

from din_kernels import data


def _review(user, item, time):
    return {"reviewerID": user, "asin": item, "reviewText": 'said "asin": "X"', "unixReviewTime": time}


REVIEWS = [
    _review("B", "i2", 50),
    _review("A", "i1", 30),
    _review("A", "i3", 20),
    _review("A", "i2", 30),
    _review("A", "i0", 30),
]
META = [
    {"asin": "i0", "categories": [["Beauty", "Hair"], ["Beauty", "Skin"]]},
    {"asin": "unused", "categories": []},
    {"asin": "i1", "title": "it's", "categories": [["Beauty", "Hair"]]},
    {"asin": "i2", "category": ["Beauty", "Skin"]},
]


@pytest.fixture
def raw(tmp_path):
    def write(reviews=REVIEWS, meta=META, meta_line=repr):
        with gzip.open(tmp_path / "reviews_Toy_5.json.gz", "wt") as file:
            file.writelines(json.dumps(review) + "\n" for review in reviews)
        with gzip.open(tmp_path / "meta_Toy.json.gz", "wt") as file:
            file.writelines(meta_line(item) + "\n" for item in meta)
        return tmp_path

    return write


@pytest.mark.parametrize("meta_line", [repr, json.dumps])
def test_reviews_are_sorted_by_time_and_ties_keep_the_files_order(raw, meta_line):
    interactions = data.load(raw(meta_line=meta_line))
    names = interactions.item_names
    assert interactions.user_names.tolist() == ["A", "B"]
    assert names[interactions.items_of(0)].tolist() == ["i3", "i1", "i2", "i0"]
    assert names[interactions.items_of(1)].tolist() == ["i2"]


def test_the_category_is_the_last_of_the_last_path_and_unknown_without_meta(raw):
    interactions = data.load(raw())
    categories = np.asarray(interactions.category_names)[interactions.category_ids]
    assert dict(zip(interactions.item_names.tolist(), categories.tolist(), strict=True)) == {
        "i0": "Skin",
        "i1": "Hair",
        "i2": "Skin",
        "i3": "unknown",
    }


def test_uncompressed_reviews_are_read_too(raw):
    folder = raw()
    compressed = data.load(folder / "reviews_Toy_5.json.gz")
    for name in ("reviews_Toy_5.json", "meta_Toy.json"):
        (folder / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
    plain = data.load_amazon_reviews(folder / "reviews_Toy_5.json", folder / "meta_Toy.json")
    assert plain.item_ids.tolist() == compressed.item_ids.tolist()


@pytest.mark.parametrize("name", ["reviews_Toy_5.json.gz", "meta_Toy.json.gz"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97])
def test_a_truncated_gzip_is_refused_with_file_and_line(raw, name, kept):
    file = raw(REVIEWS * 500, META[:1] + [{"asin": f"u{n}", "categories": [["Beauty"]]} for n in range(2000)]) / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=rf"{name}: line \d+: the file is truncated or damaged"):
        data.load(file.parent)


def test_damaged_gzip_bytes_are_refused_with_file_and_line(raw):
    file = raw() / "reviews_Toy_5.json.gz"
    file.write_bytes(b"plain text\n")
    with pytest.raises(ValueError, match=r"reviews_Toy_5.json.gz: line 1: the file is truncated or damaged"):
        data.load(file.parent)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"reviewerID": "A", "asin"', "expected one JSON object or Python dict, got"),
        ("[1, 2]", "expected one JSON object or Python dict, got"),
        ("", "expected one JSON object or Python dict, got ''"),
        ('{"reviewerID": "A", "asin": "i1"}', "unixReviewTime must be int, got None"),
        ('{"reviewerID": 5, "asin": "i1", "unixReviewTime": 3}', "reviewerID must be str, got 5"),
    ],
)
def test_a_malformed_review_is_refused_with_file_and_line(raw, line, complaint):
    folder = raw()
    text = "\n".join([json.dumps(REVIEWS[0]), line, json.dumps(REVIEWS[1])]) + "\n"
    (folder / "reviews_Toy_5.json.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(ValueError, match=f"reviews_Toy_5.json.gz: line 2: {complaint}"):
        data.load(folder)


@pytest.mark.parametrize(
    "line", ["{'asin': 'unused', 'title'", "{'asin': 'i1', 'categories': [[]]}", "{'title': 'no asin'}"]
)
def test_a_malformed_meta_line_is_refused_with_file_and_line(raw, line):
    folder = raw()
    (folder / "meta_Toy.json.gz").write_bytes(gzip.compress(f"{META[0]!r}\n{line}\n".encode()))
    with pytest.raises(ValueError, match=r"meta_Toy.json.gz: line 2: "):
        data.load(folder)


def test_a_json_file_whose_last_line_does_not_end_is_refused(raw):
    folder = raw()
    (folder / "reviews_Toy_5.json.gz").write_bytes(gzip.compress(json.dumps(REVIEWS[0]).encode()))
    with pytest.raises(ValueError, match=r"line 1: no newline at the end, the file looks truncated"):
        data.load(folder)


def test_reviews_without_meta_are_refused(raw):
    folder = raw()
    (folder / "meta_Toy.json.gz").unlink()
    with pytest.raises(ValueError, match="path must lead to one reviews file and one meta file"):
        data.load(folder)
