"""mma.sync and ldmatrix of the emulation against the fragment tables of the PTX ISA, written out here.

Per lane: groupID = lane >> 2, threadID_in_group = lane % 4 (PTX ISA, section "Warp-level matrix instructions").
"""

import subprocess

import numpy as np
import pytest
import torch
from support.cuda_emulation_programs import compiled

# (row, column) of every element of a lane's fragment, in the order of the ISA's a0, a1, ...; g = groupID,
# t = threadID_in_group.
LAYOUTS = {
    # "Matrix fragments for mma.m16n8k16 with floating point type", .f16 / .bf16
    "m16n8k16": {
        "a": lambda g, t: [
            (g, 2 * t),
            (g, 2 * t + 1),
            (g + 8, 2 * t),
            (g + 8, 2 * t + 1),
            (g, 2 * t + 8),
            (g, 2 * t + 9),
            (g + 8, 2 * t + 8),
            (g + 8, 2 * t + 9),
        ],
        "b": lambda g, t: [(2 * t, g), (2 * t + 1, g), (2 * t + 8, g), (2 * t + 9, g)],
        "c": lambda g, t: [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)],
        "depth": 16,
    },
    # "Matrix fragments for mma.m16n8k8", .tf32
    "m16n8k8": {
        "a": lambda g, t: [(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)],
        "b": lambda g, t: [(t, g), (t + 4, g)],
        "c": lambda g, t: [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)],
        "depth": 8,
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    program = compiled("fragments", tmp_path_factory.mktemp("fragments"))

    def run(name: str, words: np.ndarray) -> np.ndarray:
        done = subprocess.run([program, name], input=words.astype(np.uint32).tobytes(), check=True, capture_output=True)
        return np.frombuffer(done.stdout, np.uint32).reshape(32, -1)

    return run


def spread(matrix: np.ndarray, layout) -> np.ndarray:
    """`[32, elements]`: what each lane holds of `matrix`."""
    return np.array([[matrix[position] for position in layout(lane >> 2, lane % 4)] for lane in range(32)])


def small_integers(*shape: int, seed: int) -> np.ndarray:
    """Exact in every type, sums of 16 products among them."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def halves(elements: np.ndarray, kind: str) -> np.ndarray:
    """16-bit elements packed two to a word, the lower one first."""
    bits = elements.astype(np.float16).view(np.uint16) if kind == "fp16" else elements.view(np.uint32) >> 16
    bits = bits.astype(np.uint32)
    return bits[:, 0::2] | bits[:, 1::2] << 16


def multiplied(run, kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """D of the emulated instruction, gathered with the layout of C."""
    layout = LAYOUTS["m16n8k8" if kind == "tf32" else "m16n8k16"]
    parts = [spread(a, layout["a"]), spread(b, layout["b"])]
    parts = [part.view(np.uint32) if kind == "tf32" else halves(part, kind) for part in parts]
    words = np.concatenate([*parts, spread(c, layout["c"]).view(np.uint32)], axis=1)
    d = run(f"mma_{kind}", words).view(np.float32)
    result = np.full((16, 8), np.nan, np.float32)
    for lane in range(32):
        for register, position in enumerate(layout["c"](lane >> 2, lane % 4)):
            result[position] = d[lane, register]
    return result


@pytest.mark.parametrize("kind", ["bf16", "fp16", "tf32"])
def test_mma_multiplies_matrices_laid_out_as_in_the_isa(run, kind):
    depth = LAYOUTS["m16n8k8" if kind == "tf32" else "m16n8k16"]["depth"]
    a, b, c = (small_integers(*shape, seed=i) for i, shape in enumerate(((16, depth), (depth, 8), (16, 8))))
    assert np.array_equal(multiplied(run, kind, a, b, c), a @ b + c)


@pytest.mark.parametrize("kind", ["bf16", "fp16", "tf32"])
def test_every_element_of_a_and_b_counts_once(run, kind):
    depth = LAYOUTS["m16n8k8" if kind == "tf32" else "m16n8k16"]["depth"]
    for k in range(depth):
        a, b = np.zeros((16, depth), np.float32), np.zeros((depth, 8), np.float32)
        a[:, k], b[k] = np.arange(1, 17), np.arange(1, 9)
        assert np.array_equal(multiplied(run, kind, a, b, np.zeros((16, 8), np.float32)), a @ b)


def test_tf32_ignores_the_lower_13_bits(run):
    one_and_a_bit = np.uint32(0x3F800000 | 0x1FFF).view(np.float32)
    a, b = np.full((16, 8), one_and_a_bit, np.float32), np.eye(8, dtype=np.float32)
    assert np.array_equal(multiplied(run, "tf32", a, b, np.zeros((16, 8), np.float32)), np.ones((16, 8)))


def test_ldmatrix_gives_lane_t_the_32_bits_at_column_t_mod_4_of_row_t_div_4(run):
    memory = np.arange(128, dtype=np.uint32) + 1000  # row r is words 4 r .. 4 r + 3
    row_of_lane = np.random.default_rng(0).permutation(32)
    fragments = run("ldmatrix", np.concatenate([memory, row_of_lane]))
    for lane in range(32):
        for matrix in range(4):
            row = row_of_lane[8 * matrix + lane // 4]  # its address comes from lane 8 * matrix + row of the matrix
            assert fragments[lane, matrix] == memory[4 * row + lane % 4]


def test_transposed_ldmatrix_gives_lane_t_two_rows_of_column_t_div_4(run):
    halves = np.arange(256, dtype=np.uint16) + 1000  # row r of a matrix is halves 8 r .. 8 r + 7
    row_of_lane = np.random.default_rng(0).permutation(32)
    fragments = run("ldmatrix_trans", np.concatenate([halves.view(np.uint32), row_of_lane])).view(np.uint16)
    for lane in range(32):
        for matrix in range(4):
            rows = row_of_lane[8 * matrix + 2 * (lane % 4) :][:2]
            assert np.array_equal(fragments[lane, 2 * matrix : 2 * matrix + 2], halves[8 * rows + lane // 4])


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_products_of_two_are_those_of_one_rounded_once(run, kind):
    """As fp32 rounds the exact product, signs of zero among them."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    a, b = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    a[:4], b[:4] = torch.tensor([0.0, -0.0, 0.0, 1e-4], dtype=dtype), torch.tensor([1, 1, -1, 1e-4], dtype=dtype)
    words = torch.stack([a.view(32, 2), b.view(32, 2)], 1).view(torch.int32).flatten()
    found = torch.from_numpy(run(f"multiply_{kind}x2", words.numpy().view(np.uint32)).view(np.int16).copy())
    assert torch.equal(found.flatten(), (a.float() * b.float()).to(dtype).view(torch.int16))
