"""Fused kernels for Deep Interest Network (Zhou et al., KDD 2018) in PyTorch."""

from din_kernels import backends, nn
from din_kernels.backends import BackendError, use_backend
from din_kernels.checks import debug_checks
from din_kernels.jagged import Jagged, Padded
from din_kernels.ops import dice, local_activation, mba_penalty

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "Jagged",
    "Padded",
    "backends",
    "debug_checks",
    "dice",
    "local_activation",
    "mba_penalty",
    "nn",
    "use_backend",
]
