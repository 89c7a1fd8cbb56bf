"""The ops: one file each, all schemas in schemas.py."""

from din_kernels.ops.dice import dice
from din_kernels.ops.local_activation import local_activation
from din_kernels.ops.mba_penalty import mba_penalty
from din_kernels.ops.sparse_update import sparse_update

__all__ = ["dice", "local_activation", "mba_penalty", "sparse_update"]
