"""pytest plugin (-p modules_from): the compiled modules under test are another build's, named by the environment.

DIN_KERNELS_CORE names a file that stands for `din_kernels._cpu`, DIN_KERNELS_EMULATION one that stands for the emulated
CUDA module.
"""

import importlib.util
import os
import sys

import torch  # noqa: F401  before the compiled modules

for _name, _variable in (("_cpu", "DIN_KERNELS_CORE"), ("_cuda_emulated", "DIN_KERNELS_EMULATION")):
    if _variable in os.environ:
        _spec = importlib.util.spec_from_file_location(f"din_kernels.{_name}", os.environ[_variable])
        sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_spec.name])
