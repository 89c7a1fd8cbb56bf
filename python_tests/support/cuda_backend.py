"""Where tests of backend `cuda` run: on a GPU, and everywhere on the emulation."""

import pytest
import torch

from din_kernels.backends import cuda

KINDS = ("emulated", pytest.param("gpu", marks=pytest.mark.gpu))


def device_of(kind: str, monkeypatch) -> str:
    """The device of tensors for `kind`, after setting up the environment; a skip where there is no GPU."""
    monkeypatch.setenv("DIN_KERNELS_CUDA_EMULATE", str(int(kind == "emulated")))
    reason = cuda.unavailable()
    if kind == "gpu" and (reason or not torch.cuda.is_available()):
        pytest.skip(f"no GPU: {reason or 'torch sees none'}")
    assert reason is None
    return "cpu" if kind == "emulated" else "cuda"


def emulated_module(monkeypatch):
    """For a fixture: the emulated module, whose device a test may set."""
    device_of("emulated", monkeypatch)
    module = cuda.compiled()
    yield module
    module.set_device()
