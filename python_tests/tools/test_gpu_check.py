"""Claims about tools/gpu_check.py and what is made of its results, as far as a machine without a GPU can show.

What asks the device is replaced; everything else runs as it will there, the unit on backend `cpu`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch
from support.scripts import ROOT, module_of

from din_kernels import backends
from din_kernels.benchmarking import gpu
from din_kernels.benchmarking.local_activation import COMPILED, EAGER, FOLDED
from din_kernels.benchmarking.shapes import Shape, ShapeUnavailable

TINY = Shape("tiny", lambda generator: generator.integers(1, 6, 4), 5, "a few", dim=16, candidates=2)
CHIP = "Some GPU 80GB"


@pytest.fixture
def device(monkeypatch):
    """The CPU in a GPU's place: a call takes as many ms as its turn's number."""

    def times(call):
        call()
        return [1.0, 2.0, 3.0]

    monkeypatch.setattr(gpu, "device_times", times)
    monkeypatch.setattr(gpu, "on_gpu", lambda inputs: inputs)
    monkeypatch.setattr(gpu, "peak_mb", lambda call: float(call() is None))
    monkeypatch.setattr(gpu, "floor_ms", lambda inputs: {"bytes": 0.5, "products": 0.2})
    monkeypatch.setattr(gpu, "captured", lambda call: call)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def test_a_shape_is_held_to_the_reference_and_timed_in_every_variant(device):
    found = gpu.benchmark(TINY, math.inf, ["cpu"])
    assert not found["skipped"] and set(found["variants"]) == {"cpu", EAGER, COMPILED, FOLDED}
    assert found["variants"]["cpu"]["error over bound"] <= 2 and found["share of floor"] == 0.25
    assert found["variants"][COMPILED]["both"] == {
        "peak_mb": 0.0,
        "median_ms": 2.0,
        "p20_ms": 1.0,
        "p80_ms": 3.0,
        "ratio": 1.0,
    }


def test_a_wrong_result_of_ours_is_not_timed_and_hides_no_other_variant(device, monkeypatch):
    own = gpu.variants

    def off(inputs, backends):
        made = own(inputs, backends)
        forward, both = made["cpu"]

        def wrong():
            pooled, gradients = both()
            return pooled + 1, gradients

        return made | {"cpu": (forward, wrong)}

    monkeypatch.setattr(gpu, "variants", off)
    found = gpu.benchmark(TINY, math.inf, ["cpu"])
    assert found["skipped"]["cpu"].startswith("AssertionError: cpu: pooled must be within")
    assert set(found["variants"]) == {EAGER, COMPILED, FOLDED} and "share of floor" not in found


def test_what_begins_too_late_is_listed(device):
    found = gpu.benchmark(TINY, time.monotonic() - 1, ["cpu"])
    assert not found["variants"] and set(found["skipped"].values()) == {"no time left"}


def test_what_no_graph_captures_is_timed_without_one(device, monkeypatch):
    def refuse(call):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(gpu, "captured", refuse)
    found = gpu.benchmark(TINY, math.inf, ["cpu"])
    assert found["not captured"]["cpu"] == "RuntimeError: operation not permitted when stream is capturing"
    assert gpu.GRAPH not in found["variants"]["cpu"] and found["share of floor"] == 0.25


def test_every_step_of_the_optimizer_runs(device, monkeypatch):
    small = gpu.sparse_steps(["cpu", "reference"], "cpu", (50, 8, 30))
    monkeypatch.setattr(gpu, "sparse_steps", lambda names: small)
    found = gpu.sparse(["cpu", "reference"])["variants"]
    assert set(found) >= {"cpu", "reference"} and all(row["ratio"] == 1 for row in found.values())


# --- the command ------------------------------------------------------------------------------------------------------


ROW = {"peak_mb": 10.0, "median_ms": 2.0, "p20_ms": 1.9, "p80_ms": 2.2, "ratio": 1.0}
PASSED = {"passed": True, "summary": ["3 passed"]}


def measured(shape, deadline, names):
    """What gpu.benchmark returns: a compiled peer eight times slower than ours."""
    slow = {key: 8 * value for key, value in ROW.items()}
    rows = dict.fromkeys(names, ROW) | dict.fromkeys((EAGER, COMPILED, FOLDED), slow)
    return {
        "about": shape.about,
        "dtype": str(shape.dtype),
        "skipped": {},
        "share of floor": 0.5,
        "variants": {name: {"forward": row, gpu.GRAPH: row, "both": row} for name, row in rows.items()},
    }


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Runs the command as on a machine with a GPU and Triton, its measurements canned: (exit status, result)."""
    gpu_check = module_of("tools/gpu_check.py")
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: CHIP)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(backends, "available", lambda: {"cuda": "nvcc is not installed", "triton": None})
    monkeypatch.setattr(gpu, "benchmark", measured)
    monkeypatch.setattr(gpu, "sparse", lambda names: {"variants": {"triton": ROW, gpu.FBGEMM: ROW}})
    prepared = {"tests": PASSED, "compute-sanitizer": {}}
    monkeypatch.setattr(gpu_check, "prepare", lambda *arguments: prepared)

    def run():
        status = gpu_check.main(["--no-build", "--save", str(tmp_path)])
        return status, json.loads((tmp_path / "some-gpu-80gb" / "gpu_check.json").read_text())

    return run, prepared


def test_the_command_writes_one_file_of_which_tables_and_plot_are_made(check, tmp_path):
    status, result = check[0]()
    assert status == 0 and [row["shape"] for row in result["rows"]][:2] == ["gpu_train", "uniform100"]
    assert set(result) >= {"benchmark", "case", "command", "machine", "rows"}
    report = module_of("tools/report.py")
    page = report.filled("<!-- table: gpu -->\n<!-- end -->\n<!-- table: gpu_aims -->\n<!-- end -->\n", [result])
    assert f"| {CHIP}: `gpu_train`, bfloat16 |  | 2.000 / 2.000 | 16.000 / 16.000 |" in page
    assert f"| {CHIP}: forward, over compiled | 6x | 8.0x | yes |" in page
    assert f"| {CHIP}: peak memory, of compiled | 1/8 | 1/8.0 | yes |" in page
    assert f"| {CHIP}: serving in a CUDA graph, triton | cuda 30 us | 2000.0 us | yes |" in page
    assert f"{CHIP}, Triton" in page
    assert [path.name for path in report.plot_gpu([result], tmp_path)] == ["speed-some-gpu-80gb.png"]


def test_the_command_fails_where_tests_or_a_backend_of_ours_fail(check, monkeypatch, capsys):
    run, prepared = check

    def one_is_wrong(shape, deadline, names):
        if shape.name == "real":
            raise ShapeUnavailable("no real data")
        return measured(shape, deadline, []) | {"skipped": {"triton": "AssertionError: off", EAGER: "out of memory"}}

    monkeypatch.setattr(gpu, "benchmark", one_is_wrong)
    prepared["tests"] = {"passed": False, "summary": ["1 failed"]}
    prepared["compute-sanitizer"] = {"memcheck": PASSED, "racecheck": {"skipped": "no end in time"}}
    status, result = run()
    assert status == 1 and {"shape": "real", "skipped": "no real data"} in result["rows"]
    said = capsys.readouterr().out
    assert "FAILED: tests\n" in said and "FAILED: gpu_train, triton: AssertionError: off\n" in said
    assert "racecheck" not in said.split("wrote")[1] and EAGER not in said.split("wrote")[1]


def test_what_runs_beside_is_killed_with_its_children_when_it_does_not_end():
    background = module_of("tools/gpu_check.py").Background
    late = background(
        sys.executable, "-c", "import subprocess; print('began', flush=True); subprocess.run(['sleep', '60'])"
    )
    while not os.fstat(late.output.fileno()).st_size:
        time.sleep(0.05)
    assert late.result(time.monotonic()) == {"skipped": "no end in time", "summary": ["began"], "output": ["began"]}
    assert background(sys.executable, "-c", "print('fine')").result(time.monotonic() + 30) == {
        "passed": True,
        "summary": ["fine"],
    }
    failed = background(sys.executable, "-c", "raise SystemExit('wrong')").result(time.monotonic() + 30)
    assert failed == {"passed": False, "summary": ["wrong"], "output": ["wrong"]}


def test_a_sandbox_that_hides_the_gpu_from_the_sanitizer_is_no_failure(monkeypatch):
    gpu_check = module_of("tools/gpu_check.py")
    says = [sys.executable, "-c", "raise SystemExit('Error: Device not supported. Please ...')"]
    monkeypatch.setattr(gpu_check, "sanitizers", lambda: {"memcheck": says})
    monkeypatch.setattr(gpu_check, "pytest_command", lambda *arguments: [sys.executable, "-c", ""])
    found = gpu_check.prepare([], ["cuda"], time.monotonic() + 60)
    assert found["compute-sanitizer"]["memcheck"]["skipped"] == "Device not supported"
    assert gpu_check.wrong(found | {"rows": []}, ["cuda"]) == []


def test_where_the_cuda_kernels_do_not_build_the_rest_is_built_without_them(monkeypatch):
    gpu_check = module_of("tools/gpu_check.py")
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(gpu_check, "install", lambda defaults: asked.append(defaults) or len(asked) > 1)
    assert gpu_check.build() == "nvcc did not build it for 90a, see the output"
    assert asked == [{"DIN_KERNELS_CUDA_ARCHITECTURES": "90a"}, {"DIN_KERNELS_CUDA": "off"}]


def test_without_a_gpu_it_says_what_it_would_do():
    done = subprocess.run(
        [sys.executable, "tools/gpu_check.py", "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("skipped: dry run; would time gpu_train"), done.stderr
