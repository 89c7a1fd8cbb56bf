"""Claims about what benchmarks measure with: shapes, peers, timing, peak memory."""

from __future__ import annotations

import functools
import json
import re

import numpy as np
import pytest
import torch

from din_kernels import backends, cli, config
from din_kernels.benchmarking import harness, local_activation, memory
from din_kernels.benchmarking.local_activation import COPIES, EAGER, FUSED, REFERENCE, calls, reference_results
from din_kernels.benchmarking.shapes import CPU_SHAPES, SHAPES, Shape, ShapeUnavailable, inputs_of, work

RAGGED = Shape("ragged", lambda rng: np.array([0, 1, 7, 12, 33, 3]), 33, "ragged", dim=12, hidden=(8, 5))
SHARED = Shape("shared", lambda rng: np.array([4, 9]), 9, "shared", dim=12, hidden=(8, 5), candidates=3)


def test_house_shapes_have_the_sizes_that_the_documentation_states():
    sizes = {
        "uniform100": (1024, 100, 128),
        "full100": (1024, 100, 128),
        "long": (64, 10_000, 64),
        "industrial": (5000, 50, 36),
        "gpu_train": (16_384, 200, 128),
    }
    for name, (users, longest, dim) in sizes.items():
        lengths = SHAPES[name].lengths(np.random.default_rng(0))
        assert (len(lengths), lengths.max(), SHAPES[name].dim) == (users, longest, dim)
        assert lengths.min() >= 1 and SHAPES[name].width == longest
    assert set(CPU_SHAPES) == set(SHAPES) - {"gpu_train"}


def test_the_real_shape_says_what_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setenv("DIN_KERNELS_TEST_DATA", str(tmp_path))
    with pytest.raises(ShapeUnavailable, match=re.escape(f"DIN_KERNELS_TEST_DATA names ({tmp_path}")):
        inputs_of(SHAPES["real"])
    monkeypatch.delenv("DIN_KERNELS_TEST_DATA")
    with pytest.raises(ShapeUnavailable, match="DIN_KERNELS_TEST_DATA must name the folder of real data"):
        inputs_of(SHAPES["real"])


def test_no_data_is_looked_for_outside_the_folder_that_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.delenv("DIN_KERNELS_TEST_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="no amazon_beauty: DIN_KERNELS_TEST_DATA"):
        config.data_set("amazon_beauty")
    (tmp_path / "amazon_beauty").mkdir()
    monkeypatch.setenv("DIN_KERNELS_TEST_DATA", str(tmp_path))
    assert config.data_set("amazon_beauty") == (tmp_path / "amazon_beauty").resolve()


def test_inputs_are_the_same_for_the_same_seed_and_work_counts_valid_pairs():
    first, second = inputs_of(SHARED), inputs_of(SHARED)
    assert torch.equal(first.history.values, second.history.values) and torch.equal(first.query, second.query)
    assert first.pairs == 3 * (4 + 9)
    assert work(first) == 2 * first.pairs * (12 * 8 + 8 * 5 + 5)


@pytest.mark.parametrize("shape", [RAGGED, SHARED], ids=lambda shape: shape.name)
@pytest.mark.parametrize("name", [FUSED, EAGER, "length buckets", "folded by hand", COPIES])
def test_every_variant_gives_the_results_of_the_reference(monkeypatch, name, shape):
    if name in (FUSED, COPIES) and backends.unavailable("cpu"):
        pytest.skip("no compiled core")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # its arithmetic, without the compiler
    inputs = inputs_of(shape)
    if name == COPIES and inputs.query_to_user is None:
        pytest.skip("no shared history to copy")
    known = (*local_activation.variants_of("real"), COPIES)
    name = next(each for each in known if each.startswith(name))
    exact, own = (reference_results(inputs, dtype) for dtype in (torch.float64, torch.float32))
    harness.require_equal(name, calls(name, inputs).results(inputs), own, exact, allowed=2.0)


def test_the_reference_is_the_same_in_pieces(monkeypatch):
    inputs = inputs_of(RAGGED)
    whole = calls(REFERENCE, inputs).results(inputs)
    monkeypatch.setattr(local_activation, "REFERENCE_PAIRS", 9)
    pieces = reference_results(inputs, torch.float32)
    for name, expected in whole.items():
        torch.testing.assert_close(pieces[name], expected, rtol=1e-4, atol=1e-6)


def test_a_wrong_variant_is_not_timed():
    inputs = inputs_of(RAGGED)
    exact, own = (reference_results(inputs, dtype) for dtype in (torch.float64, torch.float32))
    wrong = own | {"pooled": own["pooled"] * (1 + 1e-4)}
    with pytest.raises(AssertionError, match="mine: pooled must be within"):
        harness.require_equal("mine", wrong, own, exact)
    with pytest.raises(AssertionError, match="mine: grad query"):
        harness.require_equal("mine", own | {"grad query": own["grad query"] * torch.nan}, own, exact)


def test_variants_are_timed_once_a_round_in_an_order_drawn_for_each():
    order = []
    calls = {name: functools.partial(order.append, name) for name in "abc"}
    timings = harness.interleaved(calls, seconds=0, rounds=(30, 90), warm_up=1)
    rounds = ["".join(order[at : at + 3]) for at in range(0, len(order), 3)]
    assert len(rounds) == 31 and all(sorted(each) == list("abc") for each in rounds)
    assert len(set(rounds)) == 6
    assert timings["a"].rounds == 30 and timings["a"].p20 <= timings["a"].median <= timings["a"].p80


def test_a_saved_result_is_loaded_again(tmp_path):
    path = harness.save(tmp_path, "unit", "ragged", [{"variant": "fused", "ms": 1.5}], shape={"D": 12})
    content = json.loads(path.read_text())
    assert content["shape"] == {"D": 12} and content["machine"]["torch"] == torch.__version__
    assert list(harness.load(tmp_path)) == [(path.parent.name, "unit", "ragged")]


def test_peak_memory_counts_what_a_call_holds_at_once():
    peak = memory.peak_bytes(functools.partial(functools.partial, torch.ones, 16 << 20))
    if peak is None:
        pytest.skip("peak memory is not measured here")
    assert 0.95 < peak / (64 << 20) < 1.2


def test_bench_prints_a_table_and_refuses_an_unknown_shape(monkeypatch, capsys):
    monkeypatch.setitem(SHAPES, "uniform100", RAGGED)
    assert cli.main(["bench", "uniform100", "--without-compile", "--seconds", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "ragged" in text and "forward + backward" in text
    assert cli.main(["bench", "uniform1000"]) == 2
    assert "shape must be one of" in capsys.readouterr().err


def test_a_checkout_without_history_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("DIN_KERNELS_COMMIT", "abc1234")
    assert harness.machine()["commit"] == "abc1234"
    monkeypatch.delenv("DIN_KERNELS_COMMIT")
    monkeypatch.setattr(harness.shutil, "which", lambda name: None)
    assert harness.machine()["commit"] == "unknown"
