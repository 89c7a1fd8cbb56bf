"""The one place where environment variables are read (DIN_KERNELS_ISA is read by the compiled core itself)."""

from __future__ import annotations

import os
from pathlib import Path


def forced_backend() -> str | None:
    """Backend forced by DIN_KERNELS_BACKEND, or None for the automatic choice."""
    return os.environ.get("DIN_KERNELS_BACKEND") or None


def debug_checks() -> bool:
    """Whether DIN_KERNELS_DEBUG_CHECKS asks for value checks that would make a GPU wait."""
    return os.environ.get("DIN_KERNELS_DEBUG_CHECKS", "0") not in ("", "0")


def data_set(name: str) -> Path:
    """File or folder `name` of the real data sets of tests and benchmarks, which lie where DIN_KERNELS_TEST_DATA says.

    Raises:
        FileNotFoundError: the variable is not set, or there is no `name` in the folder that it names.
    """
    folder = os.environ.get("DIN_KERNELS_TEST_DATA")
    if not folder:
        raise FileNotFoundError(f"no {name}: DIN_KERNELS_TEST_DATA must name the folder of real data, and is not set")
    path = Path(folder).resolve() / name
    if not path.exists():
        raise FileNotFoundError(f"no {name} in the folder that DIN_KERNELS_TEST_DATA names ({folder})")
    return path


def triton_interprets() -> bool:
    """Whether TRITON_INTERPRET has Triton run its kernels on the CPU; Triton reads it when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def cuda_emulate() -> bool:
    """Whether DIN_KERNELS_CUDA_EMULATE asks for backend `cuda` to take CPU tensors, on its emulation of a GPU."""
    return os.environ.get("DIN_KERNELS_CUDA_EMULATE", "0") not in ("", "0")


def commit() -> str | None:
    """Commit that results are kept with where the checkout has no history: DIN_KERNELS_COMMIT, or None."""
    return os.environ.get("DIN_KERNELS_COMMIT") or None
