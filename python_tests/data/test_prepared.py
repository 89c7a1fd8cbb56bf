import dataclasses

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


def test_numbers_of_19_digits_that_fit_int64_are_read(prepared):
    large = 2**63 - 1
    sequences = f"{large} 30 {large - 5} 30\n3 {large - 5} 0000000000000000000000010\n"
    interactions = data.load(prepared(sequences, f"{CATEGORIES}{large - 5} {large - 7}\n"))
    assert interactions.user_names.tolist() == [large, 3]
    assert interactions.item_names[interactions.item_ids].tolist() == [30, large - 5, 30, large - 5, 10]
    assert interactions.category_names[interactions.category_ids].tolist() == [100, 100, large - 7]


def test_a_byte_order_mark_is_no_part_of_a_number(prepared):
    interactions = data.load(prepared("\ufeff" + SEQUENCES, "\ufeff" + CATEGORIES))
    assert interactions.user_names.tolist() == [7, 3, 5]


def test_a_file_in_utf_16_is_refused_by_name(prepared):
    folder = prepared()
    (folder / "seq.txt").write_bytes(SEQUENCES.encode("utf-16"))
    with pytest.raises(ValueError, match="seq.txt: line 1: the file must be UTF-8, got UTF-16"):
        data.load(folder)


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
        ("7 30 1000000000000000000000\n", r"seq.txt: line 1: a number of 22 digits does not fit int64, got '1000"),
        ("7 30\n3 9223372036854775808\n", r"seq.txt: line 2: a number of 19 digits does not fit int64, got '9223372"),
        (f"7 30\n3 {'9' * 5000}\n", r"seq.txt: line 2: a number of 5000 digits does not fit int64, got '9999"),
        ("7 30 10\r3 20 30\n5 10\n", r"seq.txt: line 1: expected lines that end at '.n', got a '.r' within a line"),
        ("7 30 10\n3 20\r 30\n", r"seq.txt: line 2: expected lines that end at '.n', got a '.r' within a line"),
        ("7 30 \u0661\u0660\n", r"seq.txt: line 1: expected whole numbers, got '\u0661' in '\u0661\u0660'"),
        ("7 30\u20281\n", r"seq.txt: line 1: expected whole numbers, got '.u2028' in "),
        ("7 30\x0b10\n", r"seq.txt: line 1: expected whole numbers, got '.x0b'"),
        ("7 30\x0010\n", r"seq.txt: line 1: expected whole numbers, got '.x00'"),
        ("7,30,10\n", r"seq.txt: line 1: expected whole numbers, got ',' in '7,30,10'"),
        ("7 3.5\n", r"seq.txt: line 1: expected whole numbers, got '.' in '3.5'"),
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


def test_one_damaged_label_does_not_turn_the_others_into_negatives(prepared, tmp_path):
    # Items called 0 and 1 are in the catalogue, so that every label is an item as well.
    catalogue = data.load_amazon_prepared(prepared(categories=CATEGORIES + "0 100\n1 100\n"), items="listed")
    (tmp_path / "rows.txt").write_text("7|30|20|1\n3|10|30|0\n3|10|20|10\n")
    with pytest.raises(ValueError, match=r"rows.txt: line 3: last field must be 0 or 1 as on 2 of 3 lines, got 10"):
        data.load_released_rows(tmp_path / "rows.txt", catalogue)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (None, "got none"),
        ([30, 10, 20, 40], r"got \[30 10 20 40\]"),
        ([10, 10, 20, 40], r"got \[10 10 20 40\]"),
        (["10", "20", "30", "40"], "got .'10' '20' '30' '40'"),
    ],
)
def test_a_catalogue_in_which_items_cannot_be_looked_up_is_refused(prepared, tmp_path, names, complaint):
    catalogue = dataclasses.replace(data.load_amazon_prepared(prepared(), items="listed"), item_names=names)
    (tmp_path / "rows.txt").write_text("7|30|20|40\n")
    with pytest.raises(ValueError, match=f"catalogue must have item_names .* in rising order, {complaint}"):
        data.load_released_rows(tmp_path / "rows.txt", catalogue)
    with pytest.raises(TypeError, match="catalogue must be Interactions, got NoneType"):
        data.load_released_rows(tmp_path / "rows.txt", None)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("7|30|20|40\n7|30|20\n", r"rows.txt: line 2: expected `user\|history\|item\|item or label`, got 3 fields"),
        ("7|30|20|40\n7|30|20|4", r"rows.txt: line 2: no newline at the end"),
        ("7|30|20|40\n7|30||40\n", r"rows.txt: line 2: user, item and last field must be one number each"),
        ("7|30|20|40\n7|30|20|41\n", r"rows.txt: line 2: item 41 is not in the catalogue"),
        ("7|30|20|40\n7|30 31|20|40\n", r"rows.txt: line 2: item 31 is not in the catalogue"),
        ("7|30|20|40\n7|3x|20|40\n", r"rows.txt: line 2: expected whole numbers, got 'x' in '3x'"),
        ("7|30|20|40\n7|30|20\r|40\n", r"rows.txt: line 2: expected lines that end at '.n', got a '.r' within a line"),
    ],
)
def test_malformed_rows_are_refused_with_file_and_line(prepared, tmp_path, rows, complaint):
    catalogue = data.load_amazon_prepared(prepared(), items="listed")
    (tmp_path / "rows.txt").write_text(rows)
    with pytest.raises(ValueError, match=complaint):
        data.load_released_rows(tmp_path / "rows.txt", catalogue)


def test_a_folder_with_several_sequence_files_asks_for_one(prepared):
    folder = prepared()
    (folder / "seq.txt").rename(folder / "seq_a.txt")
    assert data.load(folder).n_users == 3
    (folder / "seq_b.txt").write_text(SEQUENCES)
    with pytest.raises(ValueError, match=r"one seq\*.txt, got .* with seq_a.txt, seq_b.txt"):
        data.load(folder)
    assert data.load(folder / "seq_b.txt").n_users == 3
