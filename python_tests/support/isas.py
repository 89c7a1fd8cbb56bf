"""The same calls under every instruction set of this machine, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from din_kernels import _cpu

PYTHON_TESTS = Path(__file__).resolve().parents[1]


def results_of_every_isa(script: str, test: str, folder: Path) -> dict[str, Any]:
    """What `script` leaves in its variable `found`, by instruction set; it may import the test file `test`.

    DIN_KERNELS_ISA is read when the compiled core is loaded, therefore every instruction set takes a new process.
    """
    program = f"import sys, torch\n{script}\ntorch.save(found, sys.argv[1])\n"
    known = os.environ.get("PYTHONPATH")
    paths = os.pathsep.join([str(Path(test).parent), str(PYTHON_TESTS), *([known] if known else [])])
    results = {}
    for isa in _cpu.supported_isas():
        environment = os.environ | {"DIN_KERNELS_ISA": isa, "PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", program, folder / isa], check=True, env=environment)
        results[isa] = torch.load(folder / isa)
    return results
