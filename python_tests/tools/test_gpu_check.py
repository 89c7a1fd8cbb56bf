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
from din_kernels.benchmarking import (
    gpu,
    gpu_counters,
    gpu_dice,
    gpu_parts,
    gpu_profile,
    gpu_record,
    gpu_search,
    gpu_step,
)
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
    monkeypatch.setattr(gpu, "bytes_ms", lambda count: 0.5)
    monkeypatch.setattr(gpu_profile, "profiled", lambda call: {"host_ms": 0.25})
    monkeypatch.setattr(gpu_profile, "host_ms", lambda call: 0.25)
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
        "host_ms": 0.25,
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
    monkeypatch.setattr(gpu, "sparse_steps", lambda names, table: small)
    found = gpu.sparse(["cpu", "reference"])["variants"]
    assert set(found) >= {"cpu", "reference", "cpu, Adam", gpu.SPARSE_ADAM, gpu.ALONE}
    assert all(row["ratio"] == 1 for row in found.values())


def test_dice_is_timed_beside_its_peers_and_held_to_the_eager_form(device, monkeypatch):
    rows = list(gpu_dice.benchmark(math.inf, ["cpu"], [(300, 8)], "cpu"))
    assert [row["dtype"] for row in rows] == ["bfloat16", "float32"] and not any(row["skipped"] for row in rows)
    assert all(set(row["variants"]) == {"cpu", gpu_dice.EAGER, gpu_dice.COMPILED} for row in rows)
    assert next(gpu_dice.benchmark(0, ["cpu"], [(300, 8)], "cpu"))["skipped"] == "no time left"
    forward = gpu_dice.Dice.forward
    monkeypatch.setattr(gpu_dice.Dice, "forward", lambda module, x: 1.01 * forward(module, x))
    wrong = list(gpu_dice.benchmark(math.inf, ["cpu"], [(300, 8)], "cpu"))[1]
    assert wrong["skipped"]["cpu"].startswith("AssertionError: y must be within 1e-4 of the eager form")


def test_a_step_of_din_is_timed_in_every_precision_and_its_loss_compared(device, monkeypatch):
    sizes = gpu_step.Sizes(items=1000, categories=20, dim=8, users=16, length=10)
    rows = list(gpu_step.benchmark(math.inf, ["cpu"], sizes=sizes, device="cpu"))
    assert [row["precision"] for row in rows] == list(gpu_step.PRECISIONS)
    assert all(set(row["variants"]) == {"cpu", gpu_step.PACKED, gpu_step.COMPILED} for row in rows)
    own = gpu_step.steps
    monkeypatch.setattr(gpu_step, "steps", lambda *given: own(*given) | {"cpu": lambda: torch.tensor(9.0)})
    wrong = next(gpu_step.benchmark(math.inf, ["cpu"], sizes=sizes, device="cpu"))
    assert wrong["skipped"]["cpu"].startswith("AssertionError: the loss must be within 1 %")


def test_the_profilers_events_are_summed_for_one_call():
    found = gpu_profile.summary([("forward_kernel", 4.0, 2), ("fill", 1.0, 2), ("aten::add", 0.0, 4)], calls=2)
    assert found == {"kernels_ms": 2.5, "launches": 2.0, "longest": {"forward_kernel": 2.0, "fill": 0.5}}


NCU = """==PROF== Connected
"ID","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum","smsp__inst_executed.sum","dram__bytes.sum"
"","","","","ns","inst","Gbyte"
"0","forward_kernel","(256, 1, 1)","(528, 1, 1)","121,000","31,000","0.5"
"1","forward_kernel","(256, 1, 1)","(528, 1, 1)","122,000","31,000","0.5"
"""


def test_counters_are_read_once_per_kernel_in_one_unit():
    assert gpu_counters.counted(NCU) == [
        {"kernel": "forward_kernel", "us": 121.0, "warp instructions": 31000.0, "DRAM, MB": 500.0}
    ]
    assert gpu_counters.counted("==ERROR== no permission") == []
    command = gpu_counters.ncu_command("ncu", ["python", "x"])
    assert {"sums_kernel", "statistics_kernel"} < set(command[command.index("--kernel-name") + 1][7:-2].split("|"))


MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ atomic of size 4 bytes
=========     at void at::native::_scatter_gather_elementwise_kernel<(int)128>(int)+0x20
========= Invalid __global__ read of size 4 bytes
=========     at sums_kernel+0x1f0
========= ERROR SUMMARY: 2 errors
"""


def test_the_sanitizers_reports_are_told_apart_by_kernel():
    found = gpu_counters.findings(MEMCHECK)
    assert found["in ours"] == 1
    assert found["in others"] == {"_scatter_gather_elementwise_kernel": 1} and "sums_kernel" in found["first"]


def test_a_candidate_is_in_force_within_its_block_alone():
    from din_kernels.backends.triton import chips
    from din_kernels.backends.triton.dice import run

    def length() -> int:
        return chips.configuration("local_activation", "sm_90")["16 bit"]["folded"]["length"]

    before = length()
    with gpu_search.configured("sm_90", {"16 bit": {"folded": {"length": 1024}}}):
        assert length() == 1024
    assert length() == before
    # A key that no kernel reads would compare what is stored with itself.
    for each in gpu_search.candidates(None)["unit"]:
        with gpu_search.configured("sm_90", {each["size"]: each["own"]}):
            pass
    with pytest.raises(ValueError, match="must override one of .*folded, rows.*, got 'folded_backward'"):
        with gpu_search.configured("sm_90", {"16 bit": {"folded_backward": {"length": 32}}}):
            pass
    with gpu_search.launched("sums", 2, {"rows": 16}):
        assert run.SHAPES["sums", 2].rows == 16
    assert run.SHAPES["sums", 2].rows != 16
    known = {kernel for kernel, _ in run.SHAPES}
    assert all(each["kernel"] in known for each in gpu_search.candidates(None)["dice"])


def test_a_caption_names_every_commit_whose_rows_are_in_the_table():
    report = module_of("tools/report.py")
    rows = [{"shape": at, "variants": {}, "commit": at, "date": "today"} for at in ("a", "b", "a")]
    result = {"machine": {"commit": "z"}, "parts": {"timings": {"commit": "b", "date": "today"}}, "rows": rows}
    assert report.of_part(result, "timings")["machine"] == {"commit": "a, b", "date": "today"}
    assert report.of_part(result, "step")["machine"] == {"commit": "z"}


def test_results_of_another_run_replace_the_rows_they_measured_alone():
    old = {"rows": [{"shape": "a", "variants": 1}, {"shape": "b", "variants": 1}], "parts": {"dice": "x"}, "dice": []}
    new = {
        "rows": [{"shape": "a", "skipped": "no time left"}, {"shape": "b", "variants": 2}],
        "parts": {"timings": "y"},
    }
    found = gpu_record.merged(old, new)
    assert found["rows"] == [{"shape": "a", "variants": 1}, {"shape": "b", "variants": 2}]
    assert found["parts"] == {"dice": "x", "timings": "y"}


# --- the command ------------------------------------------------------------------------------------------------------


ROW = {"peak_mb": 10.0, "median_ms": 2.0, "p20_ms": 1.9, "p80_ms": 2.2, "ratio": 1.0}
VARIANTS = {"variants": {"triton": ROW}, "skipped": {}}
DICE = {"shape": [300, 8], "dtype": "float32", "floor_ms": 1.0} | VARIANTS
STEP = {"precision": "fp32"} | VARIANTS
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


def measured_rows(result, key):
    """The rows without the commit and date that are kept with each."""
    return [{name: value for name, value in row.items() if name not in ("commit", "date")} for row in result[key]]


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
    monkeypatch.setattr(gpu, "sparse", lambda names, table: {"about": "step, of a table", "variants": {"triton": ROW}})
    monkeypatch.setattr(gpu_dice, "benchmark", lambda deadline, names: iter([DICE]))
    monkeypatch.setattr(gpu_step, "benchmark", lambda deadline, names: iter([STEP]))
    monkeypatch.setattr(gpu_check, "count", lambda names, backends, deadline: {"gpu_train": []})
    prepared = {"tests": PASSED, "compute-sanitizer": {}}
    monkeypatch.setattr(gpu_check, "prepare", lambda *arguments: prepared)

    def run(*more):
        status = gpu_check.main(["--no-build", "--save", str(tmp_path), *more])
        return status, json.loads((tmp_path / "some-gpu-80gb" / "gpu_check.json").read_text())

    return run, prepared


def test_the_command_writes_one_file_of_which_tables_and_plot_are_made(check, tmp_path):
    status, result = check[0]()
    assert status == 0 and [row["shape"] for row in result["rows"]][:2] == ["gpu_train", "uniform100"]
    assert set(result) >= {"benchmark", "case", "command", "machine", "rows"}
    report = module_of("tools/report.py")
    names = ("gpu", "gpu_aims", "gpu_step", "gpu_dice", "gpu_sparse", "gpu_counters")
    page = report.filled("".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in names), [result])
    assert f"| {CHIP}: `gpu_train`, bfloat16 |  | 2.000 / 2.000 | 16.000 / 16.000 |" in page
    assert "| 8.00x / 8.00x | 0.50 |" in page
    assert f"| {CHIP}: `gpu_train`, forward by CUDA graph | 0.30 ms | 2.000 ms | no |" in page
    assert f"| {CHIP}: `real`, forward + backward, of the fastest peer's time | 0.7x | 0.12x | yes |" in page
    assert f"| {CHIP}: [300, 8], float32 |  | 2.000 |  |  |  /  | 1.000 | 2.00x |" in page
    assert f"| {CHIP}: fp32 |  | 2.00 |  |  |  /  |" in page
    assert report.NOT_MEASURED in page.split("gpu_counters")[1]
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
    assert status == 1 and {"shape": "real", "skipped": "no real data"} in measured_rows(result, "rows")
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
    monkeypatch.setattr(gpu_check, "sanitizers", lambda backends: {"memcheck": says})
    monkeypatch.setattr(gpu_check, "gpu_tests", lambda: [sys.executable, "-c", ""])
    found = gpu_check.prepare(["tests"], [], ["cuda"], time.monotonic() + 60)
    assert found["compute-sanitizer"]["memcheck"]["skipped"] == "Device not supported"
    assert gpu_check.wrong(found | {"rows": []}, ["tests"], ["cuda"]) == []


def test_a_report_in_a_kernel_of_ours_fails_the_check_and_one_in_torchs_does_not(monkeypatch):
    gpu_check = module_of("tools/gpu_check.py")
    monkeypatch.setattr(gpu_check, "gpu_tests", lambda: [sys.executable, "-c", ""])
    for said, fails in ((MEMCHECK, True), (MEMCHECK.replace("sums_kernel", "some_torch_function"), False)):
        script = [sys.executable, "-c", f"print({said!r})"]
        monkeypatch.setattr(gpu_check, "sanitizers", lambda backends, script=script: {"memcheck": script})
        found = gpu_check.prepare(["tests"], [], ["triton"], time.monotonic() + 60)
        assert (gpu_check.wrong(found, ["tests"], ["triton"]) == ["memcheck"]) == fails


def test_where_the_cuda_kernels_do_not_build_the_rest_is_built_without_them(monkeypatch):
    gpu_check = module_of("tools/gpu_check.py")
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(gpu_check, "install", lambda defaults: asked.append(defaults) or len(asked) > 1)
    assert gpu_check.build() == "nvcc did not build it for 90a, see the output"
    assert asked == [{"DIN_KERNELS_CUDA_ARCHITECTURES": "90a"}, {"DIN_KERNELS_CUDA": "off"}]


def test_one_part_runs_alone_and_adds_to_what_is_kept(check, monkeypatch):
    run, _ = check
    run("--parts", "dice")
    status, result = run("--parts", "timings", "--shapes", "gpu_train")
    assert (
        status == 0
        and measured_rows(result, "dice") == [DICE]
        and [row["shape"] for row in result["rows"]] == ["gpu_train"]
    )
    assert set(result["parts"]) == {"dice", "timings"} and "step" not in result and "sparse step" not in result
    monkeypatch.setattr(gpu_dice, "benchmark", lambda *given: iter([DICE | {"skipped": {"triton": "off"}}]))
    assert run("--parts", "dice")[0] == 1
    assert run("--parts", "sparse")[0] == 0


def test_a_part_that_fails_is_named_and_hides_no_other(check, monkeypatch, capsys):
    def breaks(*given):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "benchmark", breaks)
    monkeypatch.setattr(gpu_step, "benchmark", breaks)
    status, result = check[0]()
    assert status == 1 and measured_rows(result, "dice") == [DICE] and "step" not in result
    assert {"shape": "real", "skipped": "RuntimeError: out of memory"} in measured_rows(result, "rows")
    assert "FAILED: step: RuntimeError: out of memory" in capsys.readouterr().out


def test_parts_say_what_is_compiled_first_and_how_long_all_takes():
    gpu_check = module_of("tools/gpu_check.py")
    assert gpu_parts.compilations(["dice", "step"], ["real"]) == [
        "step fp32",
        "step tf32",
        "step bf16 autocast",
        "dice",
    ]
    assert gpu_parts.compilations(["timings", "tests"], ["real"]) == ["real"]
    short, full = gpu_check.parse([]), gpu_check.parse(["--full"])
    assert short.seconds < 300 and "search" not in short.parts and full.seconds < 540 and "search" in full.parts


def test_a_file_of_another_machine_is_merged_into_what_is_kept(check, tmp_path):
    run, _ = check
    run("--parts", "timings")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"case": CHIP, "dice": [DICE], "parts": {"dice": {"commit": "a", "date": "b"}}}))
    gpu_check = module_of("tools/gpu_check.py")
    assert gpu_check.main(["--merge", str(other), "--save", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "some-gpu-80gb" / "gpu_check.json").read_text())
    assert (
        measured_rows(result, "dice") == [DICE]
        and len(result["rows"]) > 3
        and set(result["parts"]) == {"timings", "dice"}
    )


def test_without_a_gpu_it_says_what_it_would_do():
    done = subprocess.run(
        [sys.executable, "tools/gpu_check.py", "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("skipped: dry run; would run tests, timings, step"), (
        done.stderr
    )
