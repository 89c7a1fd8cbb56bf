"""Optimizers for tables with sparse gradients, and mini-batch aware regularization inside their step."""

from din_kernels.optim.clip import clip_grad_norm_
from din_kernels.optim.mba import MBA, MBACounts
from din_kernels.optim.sparse import SparseAdagrad, SparseAdam, SparseRowWiseAdagrad, SparseSGD

__all__ = [
    "MBA",
    "MBACounts",
    "SparseAdagrad",
    "SparseAdam",
    "SparseRowWiseAdagrad",
    "SparseSGD",
    "clip_grad_norm_",
]
