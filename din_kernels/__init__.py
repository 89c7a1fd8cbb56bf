"""Fused kernels for Deep Interest Network (Zhou et al., KDD 2018) in PyTorch."""

from din_kernels import backends, models, nn, optim
from din_kernels.backends import BackendError, use_backend
from din_kernels.checks import debug_checks
from din_kernels.gather import Gather
from din_kernels.jagged import Jagged, Padded
from din_kernels.ops import dice, local_activation, mba_penalty
from din_kernels.optim import MBA, MBACounts

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "Gather",
    "Jagged",
    "MBA",
    "MBACounts",
    "Padded",
    "backends",
    "debug_checks",
    "dice",
    "local_activation",
    "mba_penalty",
    "models",
    "nn",
    "optim",
    "use_backend",
]
