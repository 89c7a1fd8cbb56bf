"""pytest plugin (-p emulation_from): DIN_KERNELS_EMULATION names the emulated CUDA module to test, another build's."""

import importlib.util
import os
import sys

import torch  # noqa: F401  before the compiled module

_spec = importlib.util.spec_from_file_location("din_kernels._cuda_emulated", os.environ["DIN_KERNELS_EMULATION"])
sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules[_spec.name])
