import gzip
import json

import numpy as np
import pytest

from din_kernels import data

SEQUENCES = "7 30 10 20\n3 20 30\n5 10\n"
CATEGORIES = "10 100\n20 500\n30 100\n40 900\n"


@pytest.fixture
def prepared(tmp_path):
    def write(sequences=SEQUENCES, categories=CATEGORIES):
        (tmp_path / "seq.txt").write_text(sequences)
        (tmp_path / "item_cate.txt").write_text(categories)
        return tmp_path

    return write


def test_prepared_text_becomes_dense_ids_that_keep_their_names(prepared):
    interactions = data.load(prepared())
    assert interactions.user_names.tolist() == [7, 3, 5]
    assert [interactions.item_names[interactions.items_of(u)].tolist() for u in range(3)] == [
        [30, 10, 20],
        [20, 30],
        [10],
    ]
    assert interactions.category_names[interactions.category_ids].tolist() == [100, 500, 100]
    assert (interactions.n_items, interactions.n_categories) == (3, 2)


def test_listed_items_are_all_those_with_a_category(prepared):
    interactions = data.load_amazon_prepared(prepared(), items="listed")
    assert interactions.item_names.tolist() == [10, 20, 30, 40]
    assert interactions.n_categories == 3
    with pytest.raises(ValueError, match="items must be 'seen' or 'listed', got 'all'"):
        data.load_amazon_prepared(prepared(), items="all")


def test_windows_line_ends_and_tabs_are_read(prepared):
    interactions = data.load(prepared(SEQUENCES.replace("\n", "\r\n"), CATEGORIES.replace(" ", "\t")))
    assert interactions.items_of(0).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("sequences", "complaint"),
    [
        ("7 30 10\n3 20 3", r"seq.txt: line 2: no newline at the end, the file looks truncated"),
        ("", r"seq.txt: line 1: the file is empty"),
        ("7 30 10\n3 20 x30\n", r"seq.txt: line 2: expected whole numbers, got 'x'"),
        ("7 30 10\n3 20 -30\n", r"seq.txt: line 2: expected whole numbers, got '-'"),
        ("7 30 10\n\n3 20\n", r"seq.txt: line 2: expected `user item item ...`, got an empty line"),
        ("7 30 10\n3 20\n7 20\n", r"seq.txt: line 3: user 7 was given on an earlier line"),
        ("7 30 10\n3 20 99 10\n", r"seq.txt: line 2: item 99 has no category in .*item_cate.txt"),
        ("7 30 1000000000000000000000\n", r"seq.txt: line 1: a number of 22 digits does not fit int64"),
    ],
)
def test_malformed_sequences_are_refused_with_file_and_line(prepared, sequences, complaint):
    with pytest.raises(ValueError, match=complaint):
        data.load(prepared(sequences))


@pytest.mark.parametrize(
    ("categories", "complaint"),
    [
        ("10 100\n20 500\n30 1", r"item_cate.txt: line 3: no newline at the end"),
        ("10 100\n20\n30 100\n", r"item_cate.txt: line 2: expected 2 numbers, got 1"),
        ("10 100\n20 500\n10 500\n30 1\n", r"item_cate.txt: line 3: item 10 was given on an earlier line"),
    ],
)
def test_malformed_categories_are_refused_with_file_and_line(prepared, categories, complaint):
    with pytest.raises(ValueError, match=complaint):
        data.load(prepared(categories=categories))


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


RATINGS_CSV = "userId,movieId,rating,timestamp\n9,50,4.0,300\n9,10,3.5,100\n4,50,5,7\n9,30,0.5,300\n4,10,4.5,5\n"
MOVIES_CSV = (
    'movieId,title,genres\n10,"Heat, The (1995)",Action|Crime\n30,Up,(no genres listed)\n50,Big,Crime\n60,Jaws,Horror\n'
)
RATINGS_DAT = "9::50::4::300\n9::10::3::100\n4::50::5::7\n9::30::1::300\n4::10::5::5\n"
MOVIES_DAT = "10::Heat: The::Action|Crime\n30::Up::Drama\n50::Caf\u00e9::Crime\n"


@pytest.fixture
def movielens(tmp_path):
    def write(ratings=RATINGS_CSV, movies=MOVIES_CSV, suffix="csv", encoding="utf-8"):
        (tmp_path / f"ratings.{suffix}").write_bytes(ratings.encode(encoding))
        (tmp_path / f"movies.{suffix}").write_bytes(movies.encode(encoding))
        return tmp_path

    return write


def test_movielens_csv_is_sorted_by_time_with_labels_from_four_up(movielens):
    interactions = data.load(movielens())
    assert interactions.user_names.tolist() == [4, 9]
    assert interactions.item_names[interactions.item_ids].tolist() == [10, 50, 10, 50, 30]
    assert interactions.labels.tolist() == [1, 1, 0, 1, 0]


def test_movielens_movies_keep_all_their_genres(movielens):
    interactions = data.load(movielens())
    assert not interactions.one_category
    values, offsets = interactions.categories_of(np.arange(3))
    names = [interactions.category_names[value] for value in values]
    assert [names[offsets[at] : offsets[at + 1]] for at in range(3)] == [
        ["Action", "Crime"],
        ["(no genres listed)"],
        ["Crime"],
    ]


def test_movielens_dat_reads_as_csv_does(movielens):
    interactions = data.load(movielens(RATINGS_DAT, MOVIES_DAT, "dat", "latin-1"))
    assert interactions.item_names[interactions.item_ids].tolist() == [10, 50, 10, 50, 30]
    assert interactions.labels.tolist() == [1, 1, 0, 1, 0]


def test_movielens_files_with_windows_line_ends_are_read(movielens):
    folder = movielens(RATINGS_CSV.replace("\n", "\r\n"), MOVIES_CSV.replace("\n", "\r\n"))
    assert data.load(folder / "ratings.csv").labels.tolist() == [1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("ratings", "complaint"),
    [
        (RATINGS_CSV[:-3], r"ratings.csv: line 6: no newline at the end"),
        (
            RATINGS_CSV.replace("9,10,3.5,100", "9,10,3.5"),
            r"ratings.csv: line 3: expected user, movie, rating and timestamp",
        ),
        (RATINGS_CSV.replace("3.5", "good"), r"ratings.csv: line 3: expected user, movie, rating and timestamp"),
        (RATINGS_CSV.replace("4,50,5,7\n", "4 50 5 0 7 1\n"), r"ratings.csv: line 4: expected user, movie, rating"),
        (RATINGS_CSV.replace("4,50,5,7\n", "4 50 5 0 7\n"), r"ratings.csv: line 4: expected user, movie, rating"),
        (RATINGS_CSV.replace("userId", "user"), r"ratings.csv: line 1: expected 'userId,movieId,rating,timestamp'"),
        (RATINGS_CSV.replace("4,50,", "4,77,"), r"ratings.csv: line 4: movie 77 is not in .*movies.csv"),
    ],
)
def test_malformed_ratings_are_refused_with_file_and_line(movielens, ratings, complaint):
    with pytest.raises(ValueError, match=complaint):
        data.load(movielens(ratings))


def test_ratings_parsed_in_parts_keep_their_lines(movielens, monkeypatch):
    whole = data.load(movielens())
    monkeypatch.setattr("din_kernels.data.movielens._CHUNK", 20)
    assert data.load(movielens()).item_ids.tolist() == whole.item_ids.tolist()
    with pytest.raises(ValueError, match=r"ratings.csv: line 5: expected user, movie, rating and timestamp"):
        data.load(movielens(RATINGS_CSV.replace("9,30,0.5,300", "9,30,.5,300")))


@pytest.mark.parametrize(
    ("movies", "complaint"),
    [
        (MOVIES_CSV[:-2], r"movies.csv: line 5: no newline at the end"),
        (MOVIES_CSV.replace("30,Up,", "30,"), r"movies.csv: line 3: expected movie, title and genres"),
        (MOVIES_CSV.replace("30,Up", "10,Up"), r"movies.csv: line 3: movie 10 was given on an earlier line"),
        (MOVIES_CSV.replace("movieId", "id"), r"movies.csv: line 1: expected 'movieId,title,genres'"),
    ],
)
def test_malformed_movies_are_refused_with_file_and_line(movielens, movies, complaint):
    with pytest.raises(ValueError, match=complaint):
        data.load(movielens(movies=movies))


def test_released_rows_come_as_samples_over_their_own_histories(prepared, tmp_path):
    catalogue = data.load_amazon_prepared(prepared(), items="listed")
    (tmp_path / "rows.txt").write_text("7|30 10|20|40\n3||30|10\n")
    histories, samples = data.load_released_rows(tmp_path / "rows.txt", catalogue)
    assert histories.item_names[histories.items_of(0)].tolist() == [30, 10]
    assert samples.history_length.tolist() == [2, 0]
    assert catalogue.item_names[samples.candidates].tolist() == [[20, 40], [30, 10]]
    assert samples.labels.tolist() == [[1, 0], [1, 0]]
    assert histories.user_names.tolist() == [7, 3]


def test_released_training_rows_carry_a_label(prepared, tmp_path):
    catalogue = data.load_amazon_prepared(prepared(), items="listed")
    (tmp_path / "rows.txt").write_text("7|30 10|20|1\n3|10|30|0\n")
    _, samples = data.load_released_rows(tmp_path / "rows.txt", catalogue)
    assert catalogue.item_names[samples.candidates].tolist() == [[20], [30]]
    assert samples.labels.tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("7|30|20|40\n7|30|20\n", r"rows.txt: line 2: expected `user\|history\|item\|item or label`, got 3 fields"),
        ("7|30|20|40\n7|30|20|4", r"rows.txt: line 2: no newline at the end"),
        ("7|30|20|40\n7|30||40\n", r"rows.txt: line 2: user, item and last field must be one number each"),
        ("7|30|20|40\n7|30|20|41\n", r"rows.txt: line 2: item 41 is not in the catalogue"),
        ("7|30|20|40\n7|30 31|20|40\n", r"rows.txt: line 2: item 31 is not in the catalogue"),
        ("7|30|20|40\n7|3x|20|40\n", r"rows.txt: line 2: expected whole numbers, got 'x'"),
    ],
)
def test_malformed_rows_are_refused_with_file_and_line(prepared, tmp_path, rows, complaint):
    catalogue = data.load_amazon_prepared(prepared(), items="listed")
    (tmp_path / "rows.txt").write_text(rows)
    with pytest.raises(ValueError, match=complaint):
        data.load_released_rows(tmp_path / "rows.txt", catalogue)


def test_a_folder_that_holds_no_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must hold ratings.csv or .dat, reviews"):
        data.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="path must exist"):
        data.load(tmp_path / "absent")


def test_a_folder_with_several_sequence_files_asks_for_one(prepared):
    folder = prepared()
    (folder / "seq.txt").rename(folder / "seq_a.txt")
    assert data.load(folder).n_users == 3
    (folder / "seq_b.txt").write_text(SEQUENCES)
    with pytest.raises(ValueError, match=r"one seq\*.txt, got .* with seq_a.txt, seq_b.txt"):
        data.load(folder)
    assert data.load(folder / "seq_b.txt").n_users == 3


def test_reviews_without_meta_are_refused(raw):
    folder = raw()
    (folder / "meta_Toy.json.gz").unlink()
    with pytest.raises(ValueError, match="path must lead to one reviews file and one meta file"):
        data.load(folder)
