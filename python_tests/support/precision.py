"""In which precision claims about a backend's values are made: in double where its kernels have it."""

import importlib

import torch


def widest(backend: str) -> torch.dtype:
    """float64, or float32 where the backend declares dtypes without it."""
    declared = getattr(importlib.import_module(f"din_kernels.backends.{backend}"), "DTYPES", (torch.float64,))
    return torch.float64 if torch.float64 in declared else torch.float32


def rounding(dtype: torch.dtype) -> dict[str, float]:
    """Tolerances of values of about 1 that were added in another order."""
    return {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
