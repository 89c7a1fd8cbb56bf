"""`dice` on the CPU: tensors to pointers for the compiled core."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.cpu.sparse_update import DTYPES, name_of


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    if request.device != "cpu":
        return f"its tensors must be on the CPU, got {request.device}"
    if request.dtype not in DTYPES:
        return f"dtype must be float32, float64, bfloat16 or float16, got {request.dtype}"
    return None


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def forward(x, alpha, weight, bias, mean, var, mask, training, eps):
    """Kernel call of the op's forward: y [N, C], mean and var used [C], count []."""
    from din_kernels import _cpu

    x, alpha = x.contiguous(), alpha.contiguous()
    weight, bias, mask = (None if given is None else given.contiguous() for given in (weight, bias, mask))
    mean, var = (torch.empty_like(alpha) if training else given.clone() for given in (mean, var))
    y = torch.empty_like(x)
    count = _cpu.dice_forward(
        name_of(x.dtype), *x.shape, x.data_ptr(), _pointer(mask), alpha.data_ptr(), _pointer(weight), _pointer(bias),
        mean.data_ptr(), var.data_ptr(), eps, training, y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y, mean, var, torch.tensor(count)


def backward(grad_y, x, alpha, weight, bias, mean, var, mask, training, eps):
    """Kernel call of the op's backward: gradients of x [N, C] and alpha [C], of weight and bias [C] or [0]."""
    from din_kernels import _cpu

    grad_y, x, alpha = grad_y.contiguous(), x.contiguous(), alpha.contiguous()
    mean, var = mean.contiguous(), var.contiguous()
    weight, bias, mask = (None if given is None else given.contiguous() for given in (weight, bias, mask))
    grads = [torch.empty_like(x), torch.empty_like(alpha)]
    grads += [alpha.new_empty(0 if given is None else given.shape) for given in (weight, bias)]
    _cpu.dice_backward(
        name_of(x.dtype), *x.shape, x.data_ptr(), _pointer(mask), alpha.data_ptr(), _pointer(weight), _pointer(bias),
        mean.data_ptr(), var.data_ptr(), eps, training, grad_y.data_ptr(), grads[0].data_ptr(), grads[1].data_ptr(),
        grads[2].data_ptr() if weight is not None else 0, grads[3].data_ptr() if bias is not None else 0,
        torch.get_num_threads(),
    )  # fmt: skip
    return tuple(grads)
