"""`dice` on a GPU: tensors to pointers for the CUDA kernels."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.cuda import compiled, name_of, pointer, refuses_tensors, stream_of, workspace


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    return refuses_tensors(request)


def _contiguous(*tensors):
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def forward(x, alpha, weight, bias, mean, var, mask, training, eps):
    """Kernel call of the op's forward: y [N, C], mean and var used [C], count []."""
    kernels = compiled()
    x, alpha, weight, bias, mask = _contiguous(x, alpha, weight, bias, mask)
    mean, var = (torch.empty_like(alpha) if training else given.clone() for given in (mean, var))
    y, count = torch.empty_like(x), torch.zeros((), dtype=torch.int64, device=x.device)
    if x.numel():
        scratch = workspace("dice", x, kernels.dice_workspace(*x.shape))
        with stream_of(x) as stream:
            kernels.dice_forward(
                name_of(x.dtype), *x.shape, x.data_ptr(), pointer(mask), alpha.data_ptr(), pointer(weight),
                pointer(bias), mean.data_ptr(), var.data_ptr(), eps, training, y.data_ptr(), count.data_ptr(),
                scratch.data_ptr(), stream,
            )  # fmt: skip
    elif training:
        mean.zero_(), var.fill_(1)
    return y, mean, var, count


def backward(grad_y, x, alpha, weight, bias, mean, var, mask, training, eps):
    """Kernel call of the op's backward: gradients of x [N, C] and alpha [C], of weight and bias [C] or [0]."""
    kernels = compiled()
    grad_y, x, alpha, weight, bias, mean, var, mask = _contiguous(grad_y, x, alpha, weight, bias, mean, var, mask)
    grad_x, grad_alpha = torch.empty_like(x), torch.zeros_like(alpha)
    grad_weight, grad_bias = (alpha.new_zeros(0 if given is None else given.shape) for given in (weight, bias))
    count = torch.empty((), dtype=torch.int64, device=x.device)
    if x.numel():
        scratch = workspace("dice", x, kernels.dice_workspace(*x.shape))
        with stream_of(x) as stream:
            kernels.dice_backward(
                name_of(x.dtype), *x.shape, x.data_ptr(), pointer(mask), alpha.data_ptr(), pointer(weight),
                pointer(bias), mean.data_ptr(), var.data_ptr(), eps, training, grad_y.data_ptr(), grad_x.data_ptr(),
                grad_alpha.data_ptr(), pointer(grad_weight if weight is not None else None),
                pointer(grad_bias if bias is not None else None), count.data_ptr(), scratch.data_ptr(), stream,
            )  # fmt: skip
    return grad_x, grad_alpha, grad_weight, grad_bias
