"""Compiles the programs of csrc/cuda_emulation/tests for the tests that run them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

EMULATION = Path(__file__).resolve().parents[2] / "csrc" / "cuda_emulation"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


def compiled(name: str, folder: Path) -> Path:
    """The program of tests/`name`.cpp, or a skip where it cannot be compiled."""
    if COMPILER is None or not EMULATION.exists():
        pytest.skip("needs a C++ compiler and the sources")
    program = folder / name
    sources = [EMULATION / "tests" / f"{name}.cpp", *sorted(EMULATION.glob("*.cpp"))]
    command = [
        COMPILER,
        "-std=c++17",
        "-O0",
        "-DDIN_KERNELS_EMULATE",
        f"-I{EMULATION.parent / 'include'}",
        f"-I{EMULATION.parent / 'cuda'}",
    ]
    subprocess.run([*command, *sources, "-o", program], check=True)
    return program
