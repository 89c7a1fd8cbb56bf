"""Peak memory of one call, as the operating system counts it.

A profiler of torch's allocator would not see what a compiled kernel allocates, and one process would carry the pools of
one variant into the next. So each variant runs in a process of its own, and what is reported is the rise of its peak
resident size (VmHWM) over the resident size just before the call. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from din_kernels.demo.comparison import UnitInputs, variant
from din_kernels.jagged import Jagged
from din_kernels.nn import LocalActivationUnit


def peak_bytes(name: str, unit: LocalActivationUnit, inputs: UnitInputs) -> int | None:
    """Bytes by which one forward and backward raises the resident size, at most; None where it cannot be measured."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.pt"
        settings = {
            key: getattr(unit, key) for key in ("dim", "hidden", "activation", "features", "normalize", "scale")
        }
        tensors = (inputs.query, *(inputs.history.values, inputs.history.offsets), *inputs[2:])
        torch.save({"settings": settings, "state": unit.state_dict(), "tensors": tensors}, path)
        # Large buffers are mapped, so that a freed one leaves the resident size at once.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
        done = subprocess.run(
            [sys.executable, "-m", "din_kernels.demo.memory", name, str(path), str(torch.get_num_threads())],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
        )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _measure(name: str, path: str, threads: str) -> int:
    torch.set_num_threads(int(threads))
    content = torch.load(path, weights_only=True)
    unit = LocalActivationUnit(**content["settings"])
    unit.load_state_dict(content["state"])
    unit.eval()
    query, values, offsets, *rest = content["tensors"]
    inputs = UnitInputs(query, Jagged(values, offsets), *rest)
    call = variant(name, unit)
    call(inputs)  # compiles, and starts the threads
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    call(inputs)
    return max(0, _status("VmHWM") - before)


if __name__ == "__main__":
    print(_measure(*sys.argv[1:]))
