import ast
import gzip
import json
import warnings

import numpy as np
import pytest

from din_kernels import data

# i3 is an item that the metadata do not describe.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not describe 1 of the 4 items")


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
    "line", ["{'asin': 'unused', 'title'", "{'asin': 'i1', 'categories': [[5]]}", "{'title': 'no asin'}"]
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


CATEGORY_OF = [
    ({"categories": [["Beauty", "Hair"], ["Beauty", "Skin"]]}, "Skin"),
    ({"categories": [["Beauty", "Hair"], []]}, "Hair"),
    ({"categories": [[]]}, "unknown"),
    ({"categories": []}, "unknown"),
    ({"categories": None}, "unknown"),
    ({"categories": ""}, "unknown"),
    ({}, "unknown"),
    ({"categories": "Skin"}, "Skin"),
    ({"categories": ["Beauty", "Skin"]}, "Skin"),
    ({"category": ["Beauty", "Skin"]}, "Skin"),
    ({"category": []}, "unknown"),
    ({"categories": [[]], "main_category": "All Beauty"}, "All Beauty"),
    ({"categories": [], "main_category": None}, "unknown"),
    # The name of another item in a nested record, before and after, and in text.
    ({"before": {"asin": "i9"}, "categories": [["Skin"]]}, "Skin"),
    ({"categories": [["Skin"]], "related": [{"asin": "i9", "categories": [["Wrong"]]}]}, "Skin"),
    ({"description": "{'asin': 'i9'} and \"asin\": \"i9\"", "categories": [["Skin"]]}, "Skin"),
]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("meta_line", [repr, json.dumps])
@pytest.mark.parametrize(("fields", "category"), CATEGORY_OF)
def test_the_category_is_that_of_the_record_itself(raw, fields, category, meta_line, first):
    record = {"asin": "i0", **fields} if first else {**fields, "asin": "i0"}
    with pytest.warns(
        UserWarning, match="does not describe 1 of the 2 items .*'i1' for one: their category is 'unknown'"
    ):
        interactions = data.load(raw([_review("A", "i0", 1), _review("A", "i1", 2)], [record], meta_line))
    assert interactions.category_names[interactions.category_ids[0]] == category


@pytest.mark.parametrize(
    "value", ["5", "{'a': 1}", "[['Hair', 5]]", "[['Hair', ['Skin']]]", "[None]", "['Hair\\x00']", "0"]
)
def test_categories_that_are_no_names_are_refused_with_file_line_and_value(raw, value):
    folder = raw()
    line = f"{{'asin': 'i1', 'categories': {value}}}"
    (folder / "meta_Toy.json.gz").write_bytes(gzip.compress(f"{META[0]!r}\n{line}\n".encode()))
    with pytest.raises(
        ValueError, match=r"meta_Toy.json.gz: line 2: categories must be names or lists of names"
    ) as error:
        data.load(folder)
    assert f"got {ast.literal_eval(value)!r}" in str(error.value)


@pytest.mark.parametrize("meta_line", [repr, json.dumps])
@pytest.mark.parametrize("pair", [("unused", "i1"), ("i1", "unused"), ("unused", "other")])
def test_a_lost_newline_does_not_lose_the_next_item(raw, pair, meta_line):
    folder = raw()
    lines = [meta_line(META[0]), "".join(meta_line({"asin": name, "categories": [["Hair"]]}) for name in pair)]
    (folder / "meta_Toy.json.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    with pytest.raises(ValueError, match="meta_Toy.json.gz: line 2: expected one JSON object or Python dict, got"):
        data.load(folder)


def test_python_literals_with_backslashes_are_read_without_a_warning(raw):
    folder = raw([_review("A", "i1", 1)])
    line = "{'asin': 'i1', 'title': 'a \\d b', 'categories': [['Skin']]}\n"
    (folder / "meta_Toy.json.gz").write_bytes(gzip.compress(line.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load(folder).category_names.tolist() == ["Skin"]


def test_metadata_that_describe_none_of_the_items_are_refused(raw):
    with pytest.raises(ValueError, match=r"meta_Toy.json.gz describes none of the 4 items in .*, whose first is 'i0'"):
        data.load(raw(meta=[{"asin": "other", "categories": [["Hair"]]}]))


def test_the_last_record_of_an_item_counts(raw):
    again = {"asin": "i1", "categories": [["Beauty", "Nails"]]}
    interactions = data.load(raw(meta=[*META, again]))
    assert interactions.category_names[interactions.category_ids[1]] == "Nails"


_REVIEW = '{"reviewerID": "A", "asin": "i1", "unixReviewTime": 3}'


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (_REVIEW.replace("3", str(2**70)), f"unixReviewTime must fit int64, got {2**70}"),
        (_REVIEW.replace("3", "9" * 5000), "expected one JSON object or Python dict, got"),
        (_REVIEW.replace("3", "3.0"), "unixReviewTime must be int, got 3.0"),
        (_REVIEW.replace("3", "true"), "unixReviewTime must be int, got True"),
        (_REVIEW.replace("3", '"3"'), "unixReviewTime must be int, got '3'"),
        (_REVIEW.replace("3", "[" * 100_000 + "]" * 100_000), "expected one JSON object or Python dict, got"),
        (_REVIEW.replace("3", '{"a":' * 5_000 + "1" + "}" * 5_000), "expected one JSON object or Python dict, got"),
        (_REVIEW.replace("i1", ""), "asin must not be empty or hold a NUL, got ''"),
        (_REVIEW.replace("i1", "i1\\u0000"), r"asin must not be empty or hold a NUL, got 'i1.x00'"),
        (_REVIEW.replace('"A"', '["A"]'), r"reviewerID must be str, got \['A'\]"),
        (_REVIEW + "\r" + _REVIEW, "expected one JSON object or Python dict, got"),
        (_REVIEW + _REVIEW, "expected one JSON object or Python dict, got"),
        ("{[]: 1}", "expected one JSON object or Python dict, got '{.*1}'"),
        ("{{}}", "expected one JSON object or Python dict, got '{{}}'"),
        ("{'a': __import__('os')}", "expected one JSON object or Python dict, got"),
    ],
)
def test_a_damaged_review_is_refused_with_file_line_field_and_value(raw, line, complaint):
    folder = raw()
    text = "\n".join([json.dumps(REVIEWS[0]), line, json.dumps(REVIEWS[1])]) + "\n"
    (folder / "reviews_Toy_5.json.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(ValueError, match=f"reviews_Toy_5.json.gz: line 2: {complaint}"):
        data.load(folder)


def test_bytes_that_are_not_utf_8_are_refused_with_their_line(raw):
    folder = raw()
    lines = [json.dumps(review).encode() for review in REVIEWS]
    lines[3] = lines[3].replace(b"said", b"sa\xffid")
    (folder / "reviews_Toy_5.json.gz").write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    with pytest.raises(ValueError, match="reviews_Toy_5.json.gz: line 4: expected UTF-8, got byte 0xff"):
        data.load(folder)


def test_a_byte_order_mark_windows_line_ends_and_separators_in_text_are_read(raw):
    folder = raw()
    plain = data.load(folder)
    lines = [json.dumps(review | {"reviewText": "a\u2028b\x85c"}, ensure_ascii=False) for review in REVIEWS]
    (folder / "reviews_Toy_5.json.gz").write_bytes(gzip.compress(("\ufeff" + "\r\n".join(lines) + "\r\n").encode()))
    assert data.load(folder).item_ids.tolist() == plain.item_ids.tolist()


def test_a_review_of_an_unknown_edition_is_refused_with_its_fields(raw):
    with pytest.raises(
        ValueError, match=r"line 1: a review must have .*user_id, parent_asin/asin.*, got \['item', 'user'\]"
    ):
        data.load(raw([{"user": "A", "item": "i1"}]))


REVIEWS_2023 = [
    {
        "rating": 5.0,
        "title": "t",
        "text": "x",
        "images": [],
        "asin": "v1",
        "parent_asin": "p1",
        "user_id": "AB",
        "timestamp": 1588687728923,
        "helpful_vote": 0,
        "verified_purchase": True,
    },
    {"rating": 1.0, "asin": "v2", "parent_asin": "p2", "user_id": "AA", "timestamp": 1588687728925},
    {"rating": 3.0, "asin": "v9", "parent_asin": "p1", "user_id": "AA", "timestamp": 1588687728924},
]
META_2023 = [
    {"main_category": "All Beauty", "title": "x", "details": {"asin": "p2"}, "categories": [], "parent_asin": "p1"},
    {"main_category": None, "categories": ["Beauty", "Hair"], "parent_asin": "p2", "bought_together": None},
    {"main_category": None, "categories": ["Beauty", "Nails"], "parent_asin": "p3"},
]


@pytest.fixture
def raw_2023(tmp_path):
    def write(reviews=REVIEWS_2023, meta=META_2023, name="All_Beauty"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(review) + "\n" for review in reviews))
        (tmp_path / f"meta_{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in meta))
        return tmp_path

    return write


@pytest.mark.parametrize("name", [".", "All_Beauty.jsonl"])
def test_reviews_of_2023_are_read(raw_2023, name):
    interactions = data.load(raw_2023() / name)
    assert interactions.user_names.tolist() == ["AA", "AB"]
    assert [interactions.item_names[interactions.items_of(user)].tolist() for user in (0, 1)] == [["p1", "p2"], ["p1"]]
    assert interactions.category_names[interactions.category_ids].tolist() == ["All Beauty", "Hair"]
    assert interactions.labels is None


def test_reviews_of_2023_without_a_parent_are_known_by_their_own_name(raw_2023):
    reviews = [{key: value for key, value in each.items() if key != "parent_asin"} for each in REVIEWS_2023]
    meta = [{**each, "parent_asin": name} for each, name in zip(META_2023, ("v1", "v2", "v9"), strict=True)]
    interactions = data.load(raw_2023(reviews, meta))
    assert interactions.item_names.tolist() == ["v1", "v2", "v9"]
    assert interactions.category_names[interactions.category_ids].tolist() == ["All Beauty", "Hair", "Nails"]


def test_a_parent_that_one_review_of_2023_lacks_is_named(raw_2023):
    reviews = [*REVIEWS_2023, {"asin": "v1", "user_id": "AA", "timestamp": 1}]
    with pytest.raises(ValueError, match="All_Beauty.jsonl: line 4: parent_asin must be str, got None"):
        data.load(raw_2023(reviews))


def test_compressed_reviews_of_2023_are_read(raw_2023):
    folder = raw_2023()
    plain = data.load(folder)
    for file in list(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert data.load(folder / "All_Beauty.jsonl.gz").item_ids.tolist() == plain.item_ids.tolist()


def test_of_several_metadata_files_the_one_named_like_the_reviews_is_taken(raw_2023):
    raw_2023(meta=META_2023[2:], name="Toys")
    folder = raw_2023()
    assert data.load(folder / "All_Beauty.jsonl").n_users == 2
    with pytest.raises(
        ValueError, match="path must name one of the reviews files, got .* with All_Beauty.jsonl, Toys.json"
    ):
        data.load(folder)
    (folder / "meta_All_Beauty.jsonl").rename(folder / "meta_Other.jsonl")
    with pytest.raises(ValueError, match="got All_Beauty.jsonl and metadata meta_Other.jsonl, meta_Toys.jsonl in"):
        data.load(folder / "All_Beauty.jsonl")


def test_reviews_without_meta_are_refused(raw):
    folder = raw()
    (folder / "meta_Toy.json.gz").unlink()
    with pytest.raises(ValueError, match="path must lead to one reviews file and one meta file"):
        data.load(folder)
