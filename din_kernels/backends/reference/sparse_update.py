"""Sparse optimizer steps that regularize and update only the rows of the batch (paper section 5.1, equation 6)."""

from __future__ import annotations

import torch


def sparse_update(rule, weight, states, ids, grads, counts, padding_idx, h) -> None:
    """One step on `weight [V, D]` and its states in place; ids `[N]`, grads `[N, D]`, counts `[V]` or None.

    Of every row j that appears, g is the sum of its gradients plus lambda w_j / n_j. Decoupled, the weights shrink by
    lr lambda w_j / n_j instead. bf16 and fp16 tables are computed in fp32.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    j, inverse = torch.unique(ids, return_inverse=True)
    g = grads.new_zeros(len(j), weight.shape[1], dtype=wide).index_add_(0, inverse, grads.to(wide))
    if padding_idx is not None:
        j, g = j[j != padding_idx], g[j != padding_idx]
    w = weight[j].to(wide)
    if h.maximize:
        g = -g
    if counts is not None:
        decay = h.coeff / counts[j].to(wide).clamp(min=1)[:, None]
        if h.decoupled:
            w = w - h.lr * decay * w
        else:
            g = g + decay * w
    weight[j] = (w - _STEPS[rule](j, g, *states, h)).to(weight.dtype)


def _sgd(j, g, h):
    return h.step * g


def _momentum(j, g, buffer, h):
    """b_j <- beta b_j + g;  w_j -= lr b_j"""
    buffer[j] = h.beta1 * buffer[j] + g
    return h.step * buffer[j]


def _nesterov(j, g, buffer, h):
    """b_j <- beta b_j + g;  w_j -= lr (g + beta b_j)"""
    buffer[j] = h.beta1 * buffer[j] + g
    return h.step * (g + h.beta1 * buffer[j])


def _adagrad(j, g, state_sum, h):
    """s_j += g^2;  w_j -= lr g / (sqrt(s_j) + eps)"""
    state_sum[j] += g.square()
    return h.step * g / (state_sum[j].sqrt() + h.eps)


def _rowwise_adagrad(j, g, state_sum, h):
    """s_j += mean_d g_d^2;  w_j -= lr g / (sqrt(s_j) + eps);  state_sum [V]"""
    state_sum[j] += g.square().mean(1)
    return h.step * g / (state_sum[j].sqrt() + h.eps)[:, None]


def _adam(j, g, exp_avg, exp_avg_sq, h):
    """Lazy Adam: moments [V, D] of the batch's rows alone decay; h.step holds the bias correction of SparseAdam."""
    exp_avg[j] += (1 - h.beta1) * (g - exp_avg[j])
    exp_avg_sq[j] += (1 - h.beta2) * (g.square() - exp_avg_sq[j])
    return h.step * exp_avg[j] / (exp_avg_sq[j].sqrt() + h.eps)


_STEPS = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "adam": _adam,
}


def refuses(request) -> None:
    """The reference serves every request."""
