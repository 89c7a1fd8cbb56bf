import numpy as np
import pytest

from din_kernels import data

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


@pytest.mark.parametrize(
    "title", ["\u00c5ngstr\u00f6m", "a\u2028b", "a\u2029b", "a\x85b", "a\x0bb", "a\x0cb", "a\x1cb"]
)
@pytest.mark.parametrize("suffix", ["dat", "csv"])
def test_no_character_of_a_title_ends_a_line(movielens, suffix, title):
    # The second byte of U+00C5 in UTF-8 is 0x85: as Latin-1 it is U+0085, at which str.splitlines cuts.
    ratings, movies = {"dat": (RATINGS_DAT, MOVIES_DAT), "csv": (RATINGS_CSV, MOVIES_CSV)}[suffix]
    interactions = data.load(movielens(ratings, movies.replace("Up", title), suffix))
    assert interactions.item_names.tolist() == [10, 30, 50]
    assert interactions.category_names[0] in ("Action", "(no genres listed)")


def test_titles_of_1m_in_latin_1_and_of_10m_in_utf_8_are_read_alike(movielens):
    movies = MOVIES_DAT.replace("Crime\n30", "Cr\u00efme\n30")
    for encoding in ("latin-1", "utf-8"):
        assert "Cr\u00efme" in data.load(movielens(RATINGS_DAT, movies, "dat", encoding)).category_names


def test_a_csv_that_is_not_utf_8_is_refused_with_file_and_line(movielens):
    folder = movielens(RATINGS_CSV, MOVIES_CSV.replace("Up", "\u00dcp"), encoding="latin-1")
    with pytest.raises(ValueError, match=r"movies.csv: line 3: expected UTF-8, got byte 0xdc"):
        data.load(folder)


@pytest.mark.parametrize("suffix", ["dat", "csv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_field(movielens, suffix, end):
    ratings, movies = {"dat": (RATINGS_DAT, MOVIES_DAT), "csv": (RATINGS_CSV, MOVIES_CSV)}[suffix]
    texts = ["\ufeff" + each.replace("\n", end) for each in (ratings, movies)]
    interactions = data.load(movielens(*texts, suffix))
    assert interactions.item_names[interactions.item_ids].tolist() == [10, 50, 10, 50, 30]
    assert {"Action", "Crime"} < set(interactions.category_names)
    assert not any("\r" in name for name in interactions.category_names)


@pytest.mark.parametrize("rating", ["0", "0.0", "0.4", "0.45", "5.5", "5.01", "6", "10", "300", "978300760"])
def test_a_rating_outside_a_half_to_five_is_refused_with_its_value(movielens, rating):
    wrong = RATINGS_CSV.replace("9,10,3.5,100", f"9,10,{rating},100")
    with pytest.raises(ValueError, match=rf"ratings.csv: line 3: rating must lie in 0.5..5, got '{rating}'"):
        data.load(movielens(wrong))


@pytest.mark.parametrize(("rating", "label"), [("0.5", 0), ("0.75", 0), ("3.99", 0), ("4", 1), ("5.0", 1), ("5.00", 1)])
def test_every_rating_from_a_half_to_five_is_read(movielens, rating, label):
    interactions = data.load(movielens(RATINGS_CSV.replace("9,10,3.5,100", f"9,10,{rating},100")))
    assert interactions.labels.tolist() == [1, 1, label, 1, 0]


def test_a_rating_exchanged_with_its_time_is_refused(movielens):
    with pytest.raises(ValueError, match=r"ratings.dat: line 2: rating must lie in 0.5..5, got '100'"):
        data.load(movielens(RATINGS_DAT.replace("9::10::3::100", "9::10::100::3"), MOVIES_DAT, "dat"))


@pytest.mark.parametrize(
    ("ratings", "complaint"),
    [
        (RATINGS_CSV.replace("300\n9,10", "300\r9,10"), "line 2: expected lines that end at '.n', got a '.r' within"),
        (RATINGS_CSV.replace("4.0,300", "4.0,3\r00"), "line 2: expected lines that end at '.n', got a '.r' within"),
        (RATINGS_CSV.replace("300\n9,10", "3009,10"), "line 2: expected user, movie, rating and timestamp, got '9,50"),
        (
            RATINGS_CSV.replace("9,10,", "9,\u0661\u0660,"),
            "line 3: expected user, movie, rating and timestamp",
        ),
        (
            RATINGS_CSV.replace("9,10,", f"{2**70},10,"),
            f"line 3: a number of 22 digits does not fit .*got '{2**70}'",
        ),
        (RATINGS_CSV.replace("9,10,", "9,-10,"), "line 3: expected user, movie, rating and timestamp, got '9,-10,3.5"),
        (RATINGS_CSV.replace("3.5,100", "3.5,1e2"), "line 3: expected user, movie, rating and timestamp, got"),
        (RATINGS_CSV.splitlines()[0] + "\n", "line 2: expected at least one rating, got none"),
    ],
)
def test_damaged_ratings_are_refused_with_file_line_and_value(movielens, ratings, complaint):
    with pytest.raises(ValueError, match=f"ratings.csv: {complaint}"):
        data.load(movielens(ratings))


@pytest.mark.parametrize(
    "line", ["9::10:3::100:", "9:10::3::100:", ":9::10::3:100", "9:::10::3:100", "9::10::3::::100"]
)
def test_colons_that_stand_elsewhere_are_refused(movielens, line):
    with pytest.raises(
        ValueError, match=f"ratings.dat: line 2: expected user, movie, rating and timestamp, got '{line}'"
    ):
        data.load(movielens(RATINGS_DAT.replace("9::10::3::100", line), MOVIES_DAT, "dat"))


def test_users_and_movies_of_19_digits_are_read(movielens):
    large = 2**63 - 1
    ratings = RATINGS_CSV.replace("4,", f"{large},", 1).replace("9,50,", f"9,{large - 1},")
    interactions = data.load(movielens(ratings, MOVIES_CSV.replace("60,Jaws", f"{large - 1},Jaws")))
    assert large - 1 in interactions.item_names.tolist()


@pytest.mark.parametrize(
    ("movies", "complaint"),
    [
        (MOVIES_CSV.replace('(1995)"', "(1995)"), "line 2: expected movie, title and genres, with balanced quotes"),
        (MOVIES_CSV.replace("Up,", '"Up,'), "line 3: expected movie, title and genres, with balanced quotes"),
        (MOVIES_CSV.replace("Up", '"Up"p'), "line 3: expected movie, title and genres, with balanced quotes"),
        (MOVIES_CSV.replace("Up", "U" * 200_000), "line 3: expected movie, title and genres, .*field larger than"),
        (
            MOVIES_CSV.replace("30,", "\u0663\u0660,"),
            "line 3: movie must be a whole number .*got '\u0663",
        ),
        (MOVIES_CSV.replace("30,", "3\u00b2,"), "line 3: movie must be a whole number .*got '3\u00b2'"),
        (
            MOVIES_CSV.replace("30,", f"{2**70},"),
            f"line 3: movie must be a whole number .*got '{2**70}'",
        ),
        (MOVIES_CSV.replace("30,", "9" * 5000 + ","), "line 3: movie must be a whole number .*got '999"),
        (MOVIES_CSV.replace("30,", ","), "line 3: movie must be a whole number .*got ''"),
        (MOVIES_CSV.replace("\n50", "\r50"), "line 3: expected movie, title and genres"),
        (MOVIES_CSV.replace("\n50", "50"), "line 3: expected movie, title and genres, got"),
        (MOVIES_CSV.replace("Action|Crime", "Action|"), "line 2: genres must be names with '.' between, got 'Action|'"),
        (MOVIES_CSV.replace("30,Up", "\n30,Up"), r"line 3: expected movie, title and genres, got \[\]"),
    ],
)
def test_damaged_movies_are_refused_with_file_line_and_value(movielens, movies, complaint):
    with pytest.raises(ValueError, match=f"movies.csv: {complaint}".replace("|'", "[|]'")):
        data.load(movielens(movies=movies))


def test_a_folder_with_two_editions_asks_for_one(movielens):
    movielens(RATINGS_DAT, MOVIES_DAT, "dat")
    folder = movielens()
    with pytest.raises(ValueError, match="must name one of the ratings in .*, got the folder with ratings.csv, rat"):
        data.load(folder)
    assert "Drama" in data.load(folder / "ratings.dat").category_names
    assert "Drama" not in data.load(folder / "ratings.csv").category_names
    (folder / "movies.csv").unlink()
    with pytest.raises(FileNotFoundError, match="must hold ratings.csv and movies.csv$"):
        data.load(folder / "ratings.csv")


def _item(number, title, *genres):
    # Some of the 19 columns, which the README of the set lists, by their place.
    columns = {"unknown": 0, "Action": 1, "Crime": 6, "Western": 18}
    flags = ["1" if at in [columns[genre] for genre in genres] else "0" for at in range(19)]
    return "|".join([str(number), title, "01-Jan-1995", "", "http://us.imdb.com/M/x", *flags]) + "\n"


ITEMS_100K = _item(10, "Heat", "Action", "Crime") + _item(30, "unknown", "unknown") + _item(50, "Caf\u00e9", "Western")
RATINGS_100K = "9\t50\t4\t300\n9\t10\t3\t100\n4\t50\t5\t7\n9\t30\t1\t300\n4\t10\t5\t5\n"


@pytest.fixture
def movielens_100k(tmp_path):
    def write(ratings=RATINGS_100K, items=ITEMS_100K):
        (tmp_path / "u.data").write_bytes(ratings.encode())
        (tmp_path / "u.item").write_bytes(items.encode("latin-1"))
        return tmp_path

    return write


@pytest.mark.parametrize("name", [".", "u.data"])
def test_movielens_100k_is_read(movielens_100k, name):
    interactions = data.load(movielens_100k() / name)
    assert interactions.user_names.tolist() == [4, 9]
    assert interactions.item_names[interactions.item_ids].tolist() == [10, 50, 10, 50, 30]
    assert interactions.labels.tolist() == [1, 1, 0, 1, 0]
    values, offsets = interactions.categories_of(np.arange(3))
    names = [interactions.category_names[value] for value in values]
    assert [names[offsets[at] : offsets[at + 1]] for at in range(3)] == [["Action", "Crime"], ["unknown"], ["Western"]]


def test_the_genres_of_100k_stand_in_the_order_of_its_columns(movielens_100k):
    # The README of the set: unknown | Action | Adventure | Animation | Children's | Comedy | ... | War | Western.
    fields = ["10", "Heat", "01-Jan-1995", "", "http://us.imdb.com/M/x"] + ["0"] * 19
    for column, name in [(5, "unknown"), (6, "Action"), (9, "Children's"), (13, "Drama"), (22, "War"), (23, "Western")]:
        line = "|".join([*fields[:column], "1", *fields[column + 1 :]]) + "\n"
        assert data.load(movielens_100k("1\t10\t4\t1\n", line)).category_names == [name]


@pytest.mark.parametrize(
    ("ratings", "items", "complaint"),
    [
        (
            RATINGS_100K.replace("\t3\t100", "\t100\t3"),
            ITEMS_100K,
            "u.data: line 2: rating must lie in 0.5..5, got",
        ),
        (
            RATINGS_100K.replace("\t3\t", " 3\t"),
            ITEMS_100K,
            "u.data: line 2: expected user, movie, rating and",
        ),
        (RATINGS_100K, ITEMS_100K.replace("|0\n", "|2\n", 1), "u.item: line 1: genre Western must be 0 or 1, got '2'"),
        (
            RATINGS_100K,
            ITEMS_100K.replace("|0\n", "\n", 1),
            "u.item: line 1: expected 24 fields .* got 23",
        ),
        (RATINGS_100K, ITEMS_100K.replace("\n30", "30"), "u.item: line 1: expected 24 fields .* got 47"),
        (RATINGS_100K, ITEMS_100K.replace("30|", "31|"), "u.data: line 4: movie 30 is not in .*u.item"),
    ],
)
def test_damaged_files_of_100k_are_refused_with_file_line_and_value(movielens_100k, ratings, items, complaint):
    with pytest.raises(ValueError, match=complaint):
        data.load(movielens_100k(ratings, items))
