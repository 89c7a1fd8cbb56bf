"""Sparse optimizer steps that regularize and update only the rows of the batch (paper section 5.1, equation 6)."""

from __future__ import annotations

import torch


def _row_gradients(weight, ids, grads, counts, coeff, padding_idx):
    """Unique ids and their summed gradients plus lambda w_j / n_j; the padding row is left out."""
    unique, inverse = torch.unique(ids, return_inverse=True)
    summed = grads.new_zeros(len(unique), weight.shape[1]).index_add(0, inverse, grads)
    if padding_idx is not None:
        kept = unique != padding_idx
        unique, summed = unique[kept], summed[kept]
    if coeff:
        summed = summed + coeff * weight[unique] / counts[unique].to(weight.dtype)[:, None]
    return unique, summed


def sgd(weight, ids, grads, lr, counts=None, coeff=0.0, padding_idx=None) -> None:
    """w_j <- w_j - lr (g_j + lambda w_j / n_j).  weight [V, D] in place, ids [N], grads [N, D], counts [V]."""
    j, g = _row_gradients(weight, ids, grads, counts, coeff, padding_idx)
    weight[j] -= lr * g


def adagrad(weight, state_sum, ids, grads, lr, eps=1e-10, counts=None, coeff=0.0, padding_idx=None) -> None:
    """s_j += g_j^2;  w_j -= lr g_j / (sqrt(s_j) + eps).  state_sum [V, D] in place."""
    j, g = _row_gradients(weight, ids, grads, counts, coeff, padding_idx)
    state_sum[j] += g.square()
    weight[j] -= lr * g / (state_sum[j].sqrt() + eps)


def rowwise_adagrad(weight, state_sum, ids, grads, lr, eps=1e-8, counts=None, coeff=0.0, padding_idx=None) -> None:
    """s_j += mean_d g_jd^2;  w_j -= lr g_j / (sqrt(s_j) + eps).  state_sum [V] in place."""
    j, g = _row_gradients(weight, ids, grads, counts, coeff, padding_idx)
    state_sum[j] += g.square().mean(1)
    weight[j] -= lr * g / (state_sum[j].sqrt() + eps)[:, None]


def adam(
    weight, exp_avg, exp_avg_sq, ids, grads, step, lr, betas=(0.9, 0.999), eps=1e-8, counts=None, coeff=0.0,
    padding_idx=None,
) -> None:  # fmt: skip
    """Lazy Adam: moments [V, D] of touched rows alone decay; `step` counts from 1; bias correction of SparseAdam."""
    j, g = _row_gradients(weight, ids, grads, counts, coeff, padding_idx)
    exp_avg[j] = betas[0] * exp_avg[j] + (1 - betas[0]) * g
    exp_avg_sq[j] = betas[1] * exp_avg_sq[j] + (1 - betas[1]) * g.square()
    rate = lr * (1 - betas[1] ** step) ** 0.5 / (1 - betas[0] ** step)
    weight[j] -= rate * exp_avg[j] / (exp_avg_sq[j].sqrt() + eps)
