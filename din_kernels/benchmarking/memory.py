"""Peak memory of one call, as the operating system counts it.

A profiler of torch's allocator would not see what a compiled kernel allocates, and one process would carry the pools of
one variant into the next. So each call runs in a process of its own, and what is reported is the rise of its peak
resident size (VmHWM) over the resident size just before the call. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_bytes(prepare: Callable[[], Callable[[], Any]]) -> int | None:
    """Bytes by which one call raises the resident size, at most; None where it cannot be measured.

    Args:
        prepare: makes the call, in the other process; picklable, such as a functools.partial of a module's function.

    Raises:
        RuntimeError: the call, or what makes it, fails in the other process.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prepare.pickle"
        path.write_bytes(pickle.dumps((torch.get_num_threads(), prepare)))
        # Large buffers are mapped, so that a freed one leaves the resident size at once.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
        done = subprocess.run(
            [sys.executable, "-m", "din_kernels.benchmarking.memory", str(path)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"prepare must give a call that runs in another process, got:\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _measure(path: Path) -> int:
    threads, prepare = pickle.loads(path.read_bytes())
    torch.set_num_threads(threads)
    call = prepare()
    call()  # compiles, and starts the threads
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


if __name__ == "__main__":
    print(_measure(Path(sys.argv[1])))
