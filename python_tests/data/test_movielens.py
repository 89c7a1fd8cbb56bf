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


def test_a_folder_that_holds_no_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must hold ratings.csv or .dat, reviews"):
        data.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="path must exist"):
        data.load(tmp_path / "absent")
