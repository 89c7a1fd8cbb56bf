"""Claims about the Triton backend that need no GPU: its kernels in the interpreter, compiled, and its refusals."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import din_kernels as dk
from din_kernels import backends

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, interpret: str = "0") -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, text=True, capture_output=True)


def test_kernels_equal_the_reference_in_the_interpreter():
    script = "python_tests/triton/triton_interpreted.py"
    done = run("-m", "pytest", "-q", "-W", "ignore", script, "-m", "not full", interpret="1")
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50 and "skipped" not in done.stdout


def test_triton_serves_real_programs_in_the_interpreter():
    done = run("-m", "pytest", "-q", "-W", "ignore", "python_tests/ops/test_programs.py", "-k", "triton", interpret="1")
    assert done.returncode == 0 and re.search(r"\b10 passed", done.stdout), done.stdout[-5000:]


def test_hostile_calls_have_the_same_outcome_in_the_interpreter():
    script = ("python_tests/ops/test_hostile.py", "-k", "triton", "-m", "not full")
    done = run("-m", "pytest", "-q", "-W", "ignore", *script, interpret="1")
    assert done.returncode == 0 and re.search(r"\b25 passed", done.stdout), done.stdout[-5000:]


MATRIX = {"sm_80": "mma", "sm_89": "mma", "sm_90": "mma", "sm_100": "tcgen05"}


@pytest.mark.parametrize("chip", MATRIX)
def test_forward_kernels_compile_without_a_gpu_spill_nothing_and_keep_to_the_shared_memory_they_were_taken_to_need(
    chip,
):
    also = {"sm_89": ["wide"], "sm_90": ["real, bf16", "dice", "mba_penalty", "sparse_update, rowwise_adagrad"]}.get(
        chip, []
    )
    done = run("-W", "ignore", "tools/triton_cubins.py", "--forward", "--chips", chip, "--calls", "gpu_train", *also)
    assert done.returncode == 0, done.stderr[-3000:]
    forward = next(line for line in done.stdout.splitlines() if "forward_kernel" in line)
    assert f"matrix {MATRIX[chip]}" in forward and "tanh.approx" in forward and "spills 0" in forward
    assert all(name.split(",")[0] in done.stdout for name in also)


# (columns, hidden widths, bytes per number) of house units, and what a program may have on sm_75, sm_89, sm_80, sm_90.
HOUSE = [(128, (80, 40), 2), (128, (80, 40), 4), (48, (36,), 4), (64, (80, 40), 4), (64, (200, 80), 2)]


@pytest.mark.parametrize("limit", [65536, 101376, 166912, 232448])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("columns", "widths", "itemsize"), HOUSE)
def test_tiles_fit_a_chip_or_the_unit_is_refused_by_name(columns, widths, itemsize, backward, limit):
    from din_kernels.backends.triton.local_activation.memory import FORWARD, KINDS, Shape, bound, fitting, refuses

    folded, grouped = Shape(True, 1, 64, 2, 4, "tf32"), Shape(False, 4, 16, 2, 4, "tf32")
    for wanted, kind in itertools.product((folded, grouped), KINDS if backward else (FORWARD,)):
        found = fitting(columns, widths, itemsize, kind, wanted, folded, limit)
        fits = bound(columns, widths, itemsize, kind, found) <= limit
        reason = refuses(columns, columns, widths, itemsize, backward, limit)
        assert fits or re.search(rf"D = {columns} and H = .* bytes of shared memory, of which", reason)
        assert found.group * found.length >= 16


def test_tiles_become_shorter_then_one_stage_then_folded_then_ieee():
    from din_kernels.backends.triton.local_activation.memory import Shape, smaller

    folded, grouped = Shape(True, 1, 32, 2, 4, "tf32"), Shape(False, 4, 8, 2, 4, "tf32")
    found = [(each.folded, each.length, each.num_stages, each.precision) for each in smaller(grouped, folded, 4)]
    grouped = [(False, 8, 2, "tf32"), (False, 4, 2, "tf32"), (False, 4, 1, "tf32")]
    alone = [(True, 32, 2, "tf32"), (True, 16, 2, "tf32"), (True, 16, 1, "tf32"), (True, 16, 1, "ieee")]
    assert found == grouped + alone


def test_on_hopper_no_kernel_of_the_unit_takes_products_of_warp_groups():
    done = run("-W", "ignore", "tools/triton_cubins.py", "--chips", "sm_90", "--calls", "gpu_train", "real, bf16")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "upper_layers_kernel" in done.stdout and "matrix mma" in done.stdout and "wgmma" not in done.stdout


SIZES = """
import sys, torch
sys.path.insert(0, "tools")
from triton_cubins import UNITS, dice_call, sparse_calls, specialized, unit_call

def kernels(size):
    calls = {"dice": lambda: dice_call(size), **sparse_calls(size)}
    for unit in UNITS.values():
        smaller = unit._replace(users=size, candidates=min(unit.candidates, 2), length=min(unit.length, 600))
        calls[unit] = unit_call(smaller)
    return {name: set(specialized("sm_90", call)) for name, call in calls.items()}

first = kernels(32)
assert all(first.values())
for size in (33, 1):
    for name, found in kernels(size).items():
        # One user's pairs are counted, so nothing is left for the kernels that take what was not expected.
        assert found == first[name] or (size == 1 and found < first[name]), (name, found ^ first[name])
print("same")
"""


def test_batches_of_any_size_take_the_same_kernels():
    done = run("-W", "ignore", "-c", SIZES)
    assert done.stdout == "same\n", done.stderr[-3000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_backend_says_why_it_cannot_serve():
    assert "TRITON_INTERPRET=1" in backends.unavailable("triton")
    with dk.use_backend("triton"), pytest.raises(dk.BackendError, match="cannot serve dice: torch sees no GPU"):
        dk.dice(torch.ones(2, 3), torch.zeros(3), training=True)


def test_widths_are_covered_by_powers_of_two_with_less_than_16_columns_to_spare():
    from din_kernels.backends.triton.blocks import spans

    assert spans(80).width == (64, 16)
    assert spans(40).width == (32, 16)
    for size in range(1, 300):
        found = spans(size, start=5)
        ends = [start + valid for start, valid in zip(found.start, found.valid, strict=True)]
        assert found.start == (5, *ends[:-1]) and ends[-1] == 5 + size
        assert found.width[:-1] == found.valid[:-1] and sum(found.width) - size < 16
        assert all(width >= 16 and width & (width - 1) == 0 for width in found.width)


def test_spans_cross_no_border_of_a_table():
    from din_kernels.backends.triton.local_activation.inputs import places

    d_spans, query, history = places([20], [12, 8])
    assert d_spans == (start := (0, 12), (16, 16), (12, 8))
    assert query == ((0, 0), start, (20, 20)) and history == ((0, 1), (0, 0), (12, 8))


def test_the_search_for_tile_shapes_says_what_it_would_do_without_a_gpu():
    done = run("tools/triton_search.py", "--dry-run")
    assert done.returncode == 0 and done.stdout.startswith("skipped: dry run; would"), done.stderr


@pytest.mark.parametrize("op", ["local_activation"])
def test_every_stored_configuration_launches_powers_of_two_and_16_rows_or_more(op):
    from din_kernels.backends.triton import chips

    for chip, table in chips.stored(op).items():
        for size in ("16 bit", "32 bit"):
            for path, own in table.get(size, {}).items():
                if path == "fold_from":
                    continue
                shape = chips.stored(op)["default"][size].get(path, {}) | own
                if chip != "default":
                    assert shape["group"] * shape["length"] <= chips.most_rows(chip), (chip, path)
                numbers = [shape[key] for key in ("group", "length", "num_warps")]
                assert all(number & (number - 1) == 0 for number in numbers), (chip, path)
                assert shape["group"] * shape["length"] >= 16, (chip, path)
                assert shape["group"] == 1 or "grouped" in path, (chip, path)
