"""Launch arithmetic of the CUDA kernels: tiles, shared memory, workspace and shares of blocks, for every shape and at
the limits. Plain C++ that needs no device; nothing here allocates what it plans."""

import math
import subprocess

import pytest
from support.cuda_backend import emulated_module
from support.cuda_emulation_programs import compiled

from din_kernels.backends.cuda.local_activation import CHUNK_BYTES
from din_kernels.options import FEATURES, feature_width

emulated = pytest.fixture(emulated_module)


def plan(
    emulated,
    dim,
    hidden,
    dtype,
    backward,
    shared_per_block,
    queries=1024,
    average=1,
    features="concat",
    chunk_bytes=CHUNK_BYTES,
):
    ins = [feature_width(dim, features), *hidden]
    widths = [*hidden, 1]
    call = {
        "query_tables": [(0, dtype, (queries, dim))],
        "query_ids": [],
        "history_tables": [(0, dtype, (queries * average, dim))],
        "history_ids": [],
        "begin": (0, "int64", (queries,)),
        "length": (0, "int64", (queries,)),
        **dict.fromkeys(("row_index", "row_mask", "query_to_user", "pair_begin")),
        "total_pairs": 0,
        "weights": [(0, dtype, shape) for shape in zip(widths, ins, strict=True)],
        "biases": [(0, dtype, (width,)) for width in widths],
        "params": [],
        "eps": [],
        "dice_training": False,
        "features": features,
        "activation": "sigmoid",
        "normalize": "softmax",
        "scale": 1.0,
    }
    launch = {"precision": "highest", "chunk_bytes": chunk_bytes}
    return emulated.local_activation_plan(call, launch, backward, 132, shared_per_block)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [{}, {"average": 256}, {"features": "outer"}], ids=["flat", "long", "outer"])
def test_plans_stay_within_the_chip_for_every_shape(kind, dtype, backward, emulated):
    for limit in (227 * 1024, 163 * 1024, 99 * 1024):
        for dim in (1, 3, 8, 19, 36, 64, 100, 128, 256):
            for hidden in ((), (1,), (36,), (80, 40), (200,), (64, 32, 16)):
                found = plan(emulated, dim, hidden, dtype, backward, limit, **kind)
                assert found["shared_bytes"] <= limit
                assert found["threads"] == 2 * found["rows"] and found["rows"] in (16, 32, 64)
                assert 132 <= found["blocks"] <= 4 * 132
                assert found["workspace_bytes"] > 0
                assert found["folded"] == bool(kind) and 1 <= found["chunk"] <= 1024


def test_first_layer_is_folded_from_256_behaviours_on_average_and_for_outer_features(emulated):
    folded = {
        (features, average): plan(emulated, 128, (80, 40), "bfloat16", False, 227 * 1024, 64, average, features)[
            "folded"
        ]
        for features in FEATURES
        for average in (1, 255, 256, 10_000)
    }
    assert {key for key, value in folded.items() if not value} == {
        (features, average) for features in ("concat", "product") for average in (1, 255)
    }


@pytest.mark.parametrize("backward", [False, True])
def test_matrices_of_the_folded_layer_take_no_more_than_their_share(backward, emulated):
    """A_i of D = 128, H1 = 80 takes 20 KB in bf16; for backward A_i^T as much, and its gradient of fp32 40 KB."""
    sizes = {}
    for queries in (1000, 1_000_000):
        found = plan(emulated, 128, (80, 40), "bfloat16", backward, 227 * 1024, queries, 256)
        sizes[queries] = found["workspace_bytes"]
        assert found["chunk"] == min(queries, 128 * 2**20 // ((80 if backward else 20) * 1024))
    per_query = 4 * (80 + 2 + 8 + (80 + 128 + 1 if backward else 0))  # c_i and its like: what every call has
    assert sizes[1_000_000] - sizes[1000] < 1_000_000 * per_query + 129 * 2**20


def test_outer_features_in_half_precision_keep_two_parts_of_every_matrix(emulated):
    chunks = {
        (features, dtype): plan(emulated, 64, (40,), dtype, False, 227 * 1024, 100_000, 256, features)["chunk"]
        for features in ("concat", "outer")
        for dtype in ("float32", "bfloat16")
    }

    def fit(bytes_per_element):
        return CHUNK_BYTES // (64 * 40 * bytes_per_element)

    assert chunks == {
        ("concat", "float32"): fit(4),
        ("concat", "bfloat16"): fit(2),
        ("outer", "float32"): fit(4),
        ("outer", "bfloat16"): fit(2 + 2),
    }


def test_one_candidate_at_a_time_is_the_least(emulated):
    assert plan(emulated, 128, (80, 40), "float32", True, 227 * 1024, features="outer", chunk_bytes=1)["chunk"] == 1


def test_folded_tiles_need_less_shared_memory(emulated):
    for backward in (False, True):
        flat, folded = (
            plan(emulated, 128, (80, 40), "bfloat16", backward, 227 * 1024, average=each) for each in (1, 256)
        )
        assert folded["shared_bytes"] < flat["shared_bytes"] and folded["rows"] >= flat["rows"]


def test_largest_calls_keep_their_workspace_in_64_bits(emulated):
    found = plan(emulated, 256, (200, 80), "float32", True, 227 * 1024, queries=2**31 - 1)
    assert found["workspace_bytes"] > (2**31 - 1) * 4 * (200 + 256)


def test_more_candidates_than_a_tile_can_number_are_refused_with_the_limit(emulated):
    message = "query must have at most 2147483647 rows for the CUDA kernels, got 2147483648"
    for backward in (False, True):
        with pytest.raises(ValueError, match=message):
            plan(emulated, 8, (8,), "float32", backward, 227 * 1024, queries=2**31)


def test_more_than_2_to_the_32_pairs_are_served(emulated):
    found = plan(emulated, 128, (80, 40), "bfloat16", True, 227 * 1024, queries=2**20, average=2**13)
    assert found["folded"] and found["workspace_bytes"] < 2**32


def test_dice_counts_the_rows_of_a_chunk_without_rounding(emulated):
    """In fp32, so a chunk has at most 2^24 of them: 2^40 rows take 2^16 chunks."""
    assert emulated.dice_workspace(2**40, 1) > 2**16 * 3 * 4


@pytest.fixture(scope="module")
def slots(tmp_path_factory):
    """Output of csrc/cuda_emulation/tests/slots.cpp by the first word of a line: its numbers, line by line."""
    program = compiled("slots", tmp_path_factory.mktemp("slots"))

    def run(blocks: int, lengths: list[int]) -> dict[str, list[list[int]]]:
        out = subprocess.run([program, *map(str, (blocks, *lengths))], check=True, text=True, capture_output=True)
        lines = {"total": [], "block": [], "candidate": []}
        for line in out.stdout.splitlines():
            word, *numbers = line.split()
            lines[word].append([int(number) for number in numbers])
        return lines

    return run


@pytest.mark.parametrize("blocks", [1, 3, 132])
@pytest.mark.parametrize(
    "lengths",
    [[3, 0, 70, 1, 0], [2**32 - 1, 1], [2**32, 2**32 + 65, 0, 7], [4 * 10**9, 0, 5 * 10**9, *(1,) * 90, 3 * 10**9]],
    ids=["short", "2^32", "each beyond 2^32", "empty and short between"],
)
def test_blocks_share_pairs_of_any_number(lengths, blocks, slots):
    """Blocks take whole tiles of 64 in order, without gaps, and know the candidate and row of every pair."""
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    total = ends[-1]
    share = math.ceil(math.ceil(total / 64) / blocks) * 64

    def pair(at: int) -> list[int]:  # candidate and row; rows are numbered as pairs are
        return [next(i for i, end in enumerate(ends) if at < end), at]

    found = slots(blocks, lengths)
    assert found["total"] == [[total]]
    begins = [min(block * share, total) for block in range(blocks)]
    expected = [
        [begin, (end := min(begin + share, total)), *pair(begin), *pair(min(begin + 64, end) - 1)]
        if begin < total
        else [0] * 6  # no pair is left for it
        for begin in begins
    ]
    assert found["block"] == expected
    assert found["candidate"] == [
        [(end - length) // share, (end - 1) // share] if length else [0, -1]
        for end, length in zip(ends, lengths, strict=True)
    ]


def test_width_beyond_every_tile_is_refused_with_the_kernel_and_the_limit(emulated):
    for kind in ({}, {"average": 256}, {"features": "outer"}):
        with pytest.raises(RuntimeError, match="kernel local_activation_forward needs .* the limit is 232448"):
            plan(emulated, 8192, (8,), "float32", False, 227 * 1024, **kind)


def test_house_shape_keeps_weight_gradients_in_shared_memory_on_hopper(emulated):
    assert plan(emulated, 128, (80, 40), "bfloat16", True, 227 * 1024)["gradient_in_shared"]


def test_a_feature_set_without_columns_is_refused(tmp_path):
    """The program prints the columns of q, k, q - k, q * k and q k^T (-1: none), and how many there are in all."""
    known = {"concat": "0 3 6 9 -1 12", "product": "0 3 -1 6 -1 9", "outer": "0 3 -1 -1 6 15"}
    assert list(known) == list(FEATURES)
    numbers = map(str, range(len(known) + 1))
    done = subprocess.run([compiled("features", tmp_path), *numbers], check=True, text=True, capture_output=True)
    refused = "features must be a set whose columns the CUDA kernels know, got number 3"
    assert done.stdout.splitlines() == [*known.values(), refused]
