"""One command for a machine with a GPU: builds, runs the GPU tests, times the house shapes, writes one JSON.

    python3 tools/gpu_check.py [--save FOLDER] [--dry-run]

Our backends beside eager PyTorch on the padded batch, torch.compile of it, and torch.compile of the folded form,
forward and forward + backward, in the shape's own dtype. Equality with the reference is asserted first. It needs no
network: the build uses what is installed, and where nvcc is missing it goes on without the CUDA backend and says so.

First, side by side, since nothing is timed: the tests, compute-sanitizer, and a run of each shape that leaves compiled
code in the caches. Then, alone, the timings. `--dry-run`, and a machine without a GPU, list what would run and end
with 0.
"""

from __future__ import annotations

import argparse
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
SECONDS = 480  # for everything; what no longer fits is skipped and listed
PREPARED = 290  # seconds from the start after which tests and sanitizer are given up
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
UNSUPPORTED = "Device not supported"  # compute-sanitizer where a sandbox keeps it from the GPU
DEFAULT = ROOT / "benchmarks" / "results"


def build() -> str | None:
    """Builds the compiled core in place for this GPU; why the CUDA backend is left out, or None."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    # "a": with the instructions of this generation alone, as sm_90's are built by default.
    own = f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
    reason = None if shutil.which("nvcc") else "nvcc is not installed"
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

    def result(self, deadline: float) -> dict[str, Any]:
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
        return found | {"summary": lines[-1:], **({} if code == 0 else {"output": lines[-60:]})}


def pytest_command(*arguments: str) -> list[str]:
    """The tests that need a GPU, in several processes where pytest-xdist is installed: most of their time compiles."""
    spread = ["-n", str(max(1, (os.cpu_count() or 2) // 2))] if find_spec("xdist") else []
    return [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not full", *spread, *arguments]


def sanitizers() -> dict[str, list[str]]:
    """Commands that run the CUDA kernels of the unit under compute-sanitizer, by tool.

    Errors of API calls are torch's own probing. Every tensor must be an allocation of its own (UNCACHED), or an access
    beyond one would fall into torch's pool unseen.
    """
    path = shutil.which("compute-sanitizer")
    test = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "gpu",
        "-k",
        "all_gradients or long_histories",
        "python_tests/cuda/test_local_activation.py",
    ]
    tools = ("memcheck", "racecheck") if path else ()
    options = ["--error-exitcode", "1", "--report-api-errors", "no"]
    return {tool: [path, "--tool", tool, *options, *test] for tool in tools}


def prepare(names: list[str], backends: list[str], deadline: float) -> dict[str, Any]:
    """Everything that is not timed, side by side."""
    tests = Background(*pytest_command("python_tests"))
    tools = sanitizers() if "cuda" in backends else {}
    checks = {tool: Background(*command, **UNCACHED) for tool, command in tools.items()}
    script = [sys.executable, str(Path(__file__).resolve()), "--compile"]
    compiled = {name: Background(*script, name, TORCHINDUCTOR_COMPILE_THREADS="1") for name in names}
    result: dict[str, Any] = {"compiled before": {name: each.result(deadline) for name, each in compiled.items()}}
    result["tests"] = tests.result(deadline)
    sanitized = {tool: each.result(deadline) for tool, each in checks.items()}
    for each in sanitized.values():
        if UNSUPPORTED in "".join(each.get("output", ())):
            each["skipped"] = UNSUPPORTED
            del each["passed"]
    return result | {"compute-sanitizer": sanitized}


def wrong(result: dict[str, Any], backends: list[str]) -> list[str]:
    """What makes the check fail: tests, the sanitizer's findings, and a backend of ours that a shape left out."""
    found = [] if result["tests"].get("passed") else ["tests"]
    found += [tool for tool, each in result["compute-sanitizer"].items() if not each.get("passed", True)]
    for row in result["rows"]:
        left_out = row["skipped"] if "variants" in row else {}
        found += [f"{row['shape']}, {name}: {left_out[name]}" for name in backends if name in left_out]
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, default=DEFAULT, metavar="FOLDER", help="default: benchmarks/results")
    parser.add_argument("--shapes", nargs="+", metavar="name", help="default: all, gpu_train first")
    parser.add_argument("--dry-run", action="store_true", help="build nothing, time nothing")
    parser.add_argument("--no-build", action="store_true", help="use what is built")
    parser.add_argument("--compile", metavar="name", help="run this shape once and time nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    began = time.monotonic()
    sys.path.insert(0, str(ROOT))
    # torch.compile names a folder of its own at its first kernel; what was compiled before would not be found again.
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
    import torch

    without_cuda = None
    if torch.cuda.is_available() and not (options.dry_run or options.no_build or options.compile):
        without_cuda = build()
    from din_kernels import files
    from din_kernels.backends import available
    from din_kernels.benchmarking import gpu, harness
    from din_kernels.benchmarking.shapes import SHAPES, ShapeUnavailable

    names = options.shapes or ["gpu_train", *(name for name in SHAPES if name != "gpu_train")]
    reasons = {name: reason for name, reason in available().items() if reason is not None}
    backends = [name for name in ("cuda", "triton") if name not in reasons]
    if options.dry_run or not torch.cuda.is_available():
        why = "dry run" if options.dry_run else "torch sees no GPU"
        print(f"skipped: {why}; would time {', '.join(names)}; not available: {files.json_text(reasons)}")
        return 0
    if options.compile:
        gpu.compile_all(SHAPES[options.compile], backends)
        return 0
    import triton

    chip = torch.cuda.get_device_name()
    folder = options.save / "".join(c if c.isalnum() else "-" for c in chip.lower())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpu_check.json"
    result: dict[str, Any] = {
        "benchmark": "gpu_check",
        "case": chip,
        "command": "python tools/gpu_check.py",
        "machine": harness.machine() | {"chip": chip, "triton": triton.__version__},
        "capability": list(torch.cuda.get_device_capability()),
        "without cuda": without_cuda,
        "unavailable": reasons,
        "rows": [],
    }

    def keep(**found: Any) -> None:
        """Adds results and writes the file: what was measured stays, whatever comes."""
        result.update(found, seconds=round(time.monotonic() - began, 1))
        files.write_json(path, result)

    def time_left() -> bool:
        return time.monotonic() - began < SECONDS

    keep(**prepare(names, backends, began + PREPARED))
    print(files.json_text({name: result[name] for name in ("tests", "compute-sanitizer")}, indent=1)[:6000], flush=True)
    for name in names:
        try:
            left = time_left()
            found = gpu.benchmark(SHAPES[name], began + SECONDS, backends) if left else {"skipped": "no time left"}
        except ShapeUnavailable as reason:
            found = {"skipped": str(reason)}
        keep(rows=[*result["rows"], {"shape": name, **found}])
        print(name, files.json_text(found)[:2000], flush=True)
    keep(**{"sparse step": gpu.sparse(backends) if time_left() else {"skipped": "no time left"}})
    print("sparse step", files.json_text(result["sparse step"]), flush=True)
    failed = wrong(result, backends)
    print(f"wrote {path} after {result['seconds']} s", *(f"FAILED: {each}" for each in failed), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
