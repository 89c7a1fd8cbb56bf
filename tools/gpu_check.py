"""One command for a machine with a GPU: builds, runs the GPU tests, times the house shapes, writes one JSON.

    python3 tools/gpu_check.py [--full] [--parts tests timings ...] [--backends triton] [--no-build] [--dry-run]

Its parts, each of which a short loan of a machine can run alone:

    tests     the GPU tests, and the kernels under compute-sanitizer
    timings   every house shape: ours beside eager PyTorch on the padded batch, torch.compile of it and of the folded
              form
    step      a whole training step of DIN in fp32, tf32 and bf16 autocast
    dice      Dice in training
    sparse    gather, backward and update of embedding tables
    counters  Nsight Compute on the main kernels, where it is installed
    search    tile shapes, with --full or where it is named

First, side by side, since nothing is timed: the tests, compute-sanitizer, and runs that leave compiled code in the
caches. Then, alone, what is timed, ours held to the reference first. Results are written as each comes, over those of
the same part that the file holds already. The whole ends by itself in 5 minutes, in 9 with --full; what no longer fits
is listed. It needs no network and no history: the build uses what is installed, and where nvcc is missing it goes on
without the CUDA backend and says so. `--dry-run`, and a machine without a GPU, list what would run and end with 0.
`--merge FILE` adds the results of a file from another machine to those that are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS, FULL_SECONDS = 285, 525  # for everything; what no longer fits is skipped and listed
PREPARED = 0.5  # share of it after which tests and sanitizer are given up, where something is timed after them
PARTS = ("tests", "timings", "step", "dice", "sparse", "counters", "search")
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
UNSUPPORTED = "Device not supported"  # compute-sanitizer where a sandbox keeps it from the GPU
DEFAULT = ROOT / "benchmarks" / "results"


def build(backends: list[str] | None = None) -> str | None:
    """Builds the compiled core in place for this GPU; why the CUDA backend is left out, or None."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    # "a": with the instructions of this generation alone, as sm_90's are built by default.
    own = f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
    reason = None if shutil.which("nvcc") else "nvcc is not installed"
    if backends is not None and "cuda" not in backends:
        reason = "not asked for"
    if reason is None and not install({"DIN_KERNELS_CUDA_ARCHITECTURES": own}):
        reason = f"nvcc did not build it for {own}, see the output"
    if reason is not None and not install({"DIN_KERNELS_CUDA": "off"}):
        raise SystemExit("the compiled core does not build, see the output")
    return reason


def install(defaults: dict[str, str]) -> bool:
    """An editable installation, without network; whether it succeeded."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
    return subprocess.run(command, env=defaults | os.environ, check=False).returncode == 0


class Background:
    """A command that runs beside others; its output goes to a file."""

    def __init__(self, *command: str, **environment: str):
        self.output = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def result(self, deadline: float, keep_all: bool = False) -> dict[str, Any]:
        """Whether it passed, or that it did not end by `deadline` (of time.monotonic); then it is killed."""
        try:
            code = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            code = None
        self.output.seek(0)
        lines = self.output.read().strip().splitlines()
        found: dict[str, Any] = {"skipped": "no end in time"} if code is None else {"passed": code == 0}
        found |= {"summary": lines[-1:]} | ({} if code == 0 else {"output": lines[-60:]})
        return found | ({"all": lines} if keep_all else {})


def built_here() -> bool:
    """Whether the checkout itself holds what the build makes; else the package that is installed serves."""
    return (ROOT / "din_kernels" / "_build_info.py").exists()


def pytest_command(*arguments: str) -> list[str]:
    """pytest; -P keeps a checkout that is not built from hiding the package that is installed."""
    return [sys.executable, *([] if built_here() else ["-P"]), "-m", "pytest", "-q", *arguments]


def gpu_tests() -> list[str]:
    """The tests that need a GPU, in several processes where pytest-xdist is installed: most of their time compiles."""
    spread = ["-n", str(max(1, (os.cpu_count() or 2) // 2))] if find_spec("xdist") else []
    return pytest_command("-m", "gpu and not full", *spread, "python_tests")


def sanitizers(backends: list[str]) -> dict[str, list[str]]:
    """Commands that run the unit and Dice of a backend under compute-sanitizer, by tool.

    Errors of API calls are torch's own probing. Every tensor must be an allocation of its own (UNCACHED), or an access
    beyond one would fall into torch's pool unseen. Reports do not end the run: what torch's kernels do is told apart
    from what ours do afterwards.
    """
    path = shutil.which("compute-sanitizer")
    tests = ["python_tests/gpu/test_gpu.py", "-k", "(other_ops and dice) or (outputs and concat and sigmoid)"]
    if "cuda" in backends:
        tests = ["python_tests/cuda/test_local_activation.py", "-k", "all_gradients or long_histories"]
    test = pytest_command("-x", "-m", "gpu", *tests)
    tools = ("memcheck", "racecheck") if path and backends else ()
    return {tool: [path, "--tool", tool, "--report-api-errors", "no", *test] for tool in tools}


def again(backends: list[str], option: str) -> list[str]:
    """This command with an option for what runs beside."""
    return [sys.executable, str(Path(__file__).resolve()), "--no-build", "--backends", *backends, option]


def prepare(parts: list[str], names: list[str], backends: list[str], deadline: float) -> dict[str, Any]:
    """Everything that is not timed, side by side."""
    from din_kernels.benchmarking import gpu_parts

    tests = Background(*gpu_tests()) if "tests" in parts else None
    tools = sanitizers(backends) if "tests" in parts else {}
    checks = {tool: Background(*command, **UNCACHED) for tool, command in tools.items()}
    script = again(backends, "--compile")
    todo = gpu_parts.compilations(parts, names)
    compiled = {name: Background(*script, name, TORCHINDUCTOR_COMPILE_THREADS="1") for name in todo}
    result: dict[str, Any] = {"compiled before": {name: each.result(deadline) for name, each in compiled.items()}}
    if tests is None:
        return result
    result["tests"] = tests.result(deadline)
    sanitized = {tool: judged(each.result(deadline, keep_all=True)) for tool, each in checks.items()}
    return result | {"compute-sanitizer": sanitized}


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """A sanitizer's run, passed where no report names a kernel of ours."""
    from din_kernels.benchmarking import gpu_counters

    said = "\n".join(result.pop("all"))
    if UNSUPPORTED in said:
        return {"skipped": UNSUPPORTED, "summary": result["summary"]}
    found = gpu_counters.findings(said)
    if "passed" in result:
        result["passed"] = result["passed"] and not found["in ours"]
    return result | {"reports": found}


def wrong(result: dict[str, Any], parts: list[str], backends: list[str]) -> list[str]:
    """What makes the check fail: tests, the sanitizer's findings, and a backend of ours that something left out."""
    from din_kernels.benchmarking.gpu_record import ROW_NAMES

    found = []
    if "tests" in parts:
        found += [] if result["tests"].get("passed") else ["tests"]
        found += [tool for tool, each in result["compute-sanitizer"].items() if not each.get("passed", True)]
    for part, key in (("timings", "rows"), ("dice", "dice"), ("step", "step")):
        for row in result.get(key, ()) if part in parts else ():
            left_out = row["skipped"] if "variants" in row else {}
            about = ", ".join(str(row[each]) for each in ROW_NAMES[key])
            found += [f"{about}, {name}: {left_out[name]}" for name in backends if name in left_out]
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, default=DEFAULT, metavar="FOLDER", help="default: benchmarks/results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all but search, with --full all")
    parser.add_argument("--full", action="store_true", help="9 minutes in place of 5, search among them")
    parser.add_argument("--seconds", type=float, help="another time for everything")
    parser.add_argument("--backends", nargs="+", choices=("cuda", "triton"), help="default: those that run here")
    parser.add_argument("--shapes", nargs="+", metavar="name", help="default: all, gpu_train first")
    parser.add_argument("--candidates", type=Path, metavar="FILE", help="what search tries, as JSON")
    parser.add_argument("--dry-run", action="store_true", help="build nothing, time nothing")
    parser.add_argument("--no-build", action="store_true", help="use what is built")
    parser.add_argument("--merge", type=Path, metavar="FILE", help="add a result file to those kept, and end")
    parser.add_argument("--compile", metavar="name", help="run this once and time nothing")
    parser.add_argument("--once", metavar="name", help="run our kernels of this shape once, for Nsight Compute")
    options = parser.parse_args(arguments)
    options.parts = options.parts or [part for part in PARTS if part != "search" or options.full]
    options.seconds = options.seconds or (FULL_SECONDS if options.full else SECONDS)
    return options


def time_parts(
    options: argparse.Namespace, names: list[str], backends: list[str], deadline: float, record: Any
) -> dict[str, str]:
    """What is timed, one part after the other; why parts ended early, by part."""
    from din_kernels import files
    from din_kernels.benchmarking import gpu, gpu_parts

    failed = {}
    for part in PARTS[1:]:
        if part not in options.parts:
            continue
        try:
            if part == "counters":
                found: Any = [{"counters": count(names, backends, deadline)}]
            else:
                found = gpu_parts.results(part, names, backends, deadline, options.candidates)
            for each in found:
                record.keep(part, **each)
                print(files.json_text(each)[:1500], flush=True)
        except Exception as error:  # one part's must not hide the others
            failed[part] = gpu.reason_of(error)
    return failed


def count(names: list[str], backends: list[str], deadline: float) -> dict[str, Any]:
    """Counters of our kernels on gpu_train or the first shape, on a float32 one, and of Dice."""
    from din_kernels.benchmarking import gpu_counters

    ncu = shutil.which("ncu")
    if ncu is None:
        return {"skipped": "ncu is not installed"}
    found: dict[str, Any] = {}
    for name in dict.fromkeys([names[0], "uniform100", "dice"]):
        once = [*again(backends, "--once"), name]
        done = Background(*gpu_counters.ncu_command(ncu, once)).result(deadline, keep_all=True)
        rows = gpu_counters.counted("\n".join(done.pop("all")))
        why = {"skipped": done.get("skipped", "ncu gave no table"), "output": done.get("output", [])[-15:]}
        found[name] = rows or why
    return found


def show(result: dict[str, Any], parts: list[str]) -> None:
    """Prints the tables of the parts that ran."""
    from din_kernels.benchmarking import gpu_tables

    for part, table in gpu_tables.OF_PARTS.items():
        if part in parts:
            heads, rows = table([result])
            print(f"\n{part}", *(" | ".join(row) for row in (heads, *rows)), sep="\n", flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    began = time.monotonic()
    if built_here() or not options.no_build:
        sys.path.insert(0, str(ROOT))
    from din_kernels.benchmarking.gpu_record import Record

    if options.merge is not None:
        new = json.loads(options.merge.read_text())
        record = Record(options.save, new["case"], {})
        record.keep(**new)
        print(f"wrote {record.path}")
        return 0
    # torch.compile names a folder of its own at its first kernel; what was compiled before would not be found again.
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
    import torch

    without_cuda = None
    within = options.compile or options.once
    if torch.cuda.is_available() and not (options.dry_run or options.no_build or within):
        without_cuda = build(options.backends)
    from din_kernels import files
    from din_kernels.backends import available
    from din_kernels.benchmarking import harness
    from din_kernels.benchmarking.shapes import SHAPES

    names = options.shapes or ["gpu_train", *(name for name in SHAPES if name != "gpu_train")]
    reasons = {name: reason for name, reason in available().items() if reason is not None}
    backends = [name for name in options.backends or ("cuda", "triton") if name not in reasons]
    if options.dry_run or not torch.cuda.is_available():
        why = "dry run" if options.dry_run else "torch sees no GPU"
        print(
            f"skipped: {why}; would run {', '.join(options.parts)} in {options.seconds:.0f} s, "
            f"time {', '.join(names)}; not available: {files.json_text(reasons)}"
        )
        return 0
    if within:
        from din_kernels.benchmarking import gpu_parts

        run = gpu_parts.compile_one if options.compile else gpu_parts.run_once
        run(within, backends)
        return 0
    import triton

    chip = torch.cuda.get_device_name()
    about = {
        "machine": harness.machine() | {"chip": chip, "triton": triton.__version__},
        "capability": list(torch.cuda.get_device_capability()),
        "without cuda": without_cuda,
        "unavailable": reasons,
    }
    record = Record(options.save, chip, about)
    timed = any(part in options.parts for part in PARTS[1:])
    found = prepare(options.parts, names, backends, began + options.seconds * (PREPARED if timed else 1))
    record.keep("tests" if "tests" in options.parts else None, **found)
    print(files.json_text(found, indent=1)[:6000], flush=True)
    ended = time_parts(options, names, backends, began + options.seconds, record)
    failed = [f"{part}: {reason}" for part, reason in ended.items()]
    failed += wrong(record.result, options.parts, backends)
    show(record.result, options.parts)
    print(f"wrote {record.path} after {record.result['seconds']} s", *(f"FAILED: {each}" for each in failed), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
