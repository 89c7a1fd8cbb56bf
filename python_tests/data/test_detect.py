import pytest

from din_kernels import data


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("All_Beauty.parquet", b"PAR1\x15\x04PAR1", "a Parquet file, without item_cate.txt beside it"),
        (
            "All_Beauty.csv",
            b"user_id,parent_asin,rating\n1,2,3\n",
            "a file that starts with 'user_id,parent_asin,rating'",
        ),
        ("seq.txt", b"1 2 3\n", "a file that starts with '1 2 3', without item_cate.txt beside it"),
        ("seq.txt.gz", b"\x1f\x8b\x08\x00", "a gzip-compressed file, without item_cate.txt beside it"),
        ("ml-25m.zip", b"PK\x03\x04", "a zip archive"),
        ("empty", b"", "an empty file"),
        ("meta_All_Beauty.jsonl", b"{}\n", "the metadata of reviews; name the file of the reviews"),
    ],
)
def test_a_file_that_is_not_understood_is_refused_with_what_it_is_and_what_would_be(tmp_path, name, content, found):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"path must hold MovieLens .*, Amazon reviews .*, got {file}, {found}"):
        data.load(file)


def test_reviews_of_2023_alone_say_which_metadata_they_need(tmp_path):
    (tmp_path / "All_Beauty.jsonl").write_text("{}\n")
    expected = "got All_Beauty.jsonl and metadata none in .* .expected meta_All_Beauty.jsonl"
    with pytest.raises(ValueError, match=expected):
        data.load(tmp_path / "All_Beauty.jsonl")


@pytest.mark.parametrize("content", [b"PAR1\x15\x04PAR1", b"\x1f\x8b\x08\x00"])
def test_binary_files_beside_categories_are_not_taken_for_prepared_text(tmp_path, content):
    (tmp_path / "item_cate.txt").write_text("1 1\n")
    (tmp_path / "seq.dat").write_bytes(content)
    with pytest.raises(ValueError, match="path must hold MovieLens"):
        data.load(tmp_path / "seq.dat")


def test_a_folder_that_holds_no_data_is_refused_with_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match="path must hold MovieLens .* got .*, an empty folder"):
        data.load(tmp_path)
    for at in range(9):
        (tmp_path / f"file{at}.bin").touch()
    with pytest.raises(
        ValueError, match=r"path must hold MovieLens .* got .*, a folder with file0.bin, .*, file7.bin, \.\.\."
    ):
        data.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="path must exist"):
        data.load(tmp_path / "absent")


@pytest.mark.parametrize("path", [None, 5, b"folder", ["folder"]])
def test_what_is_no_path_is_refused_by_name(path):
    with pytest.raises(TypeError, match=f"path must be str or Path, got {type(path).__name__}"):
        data.load(path)
