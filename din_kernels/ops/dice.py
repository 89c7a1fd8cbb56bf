"""Dice (paper section 5.3) as a torch op: checks, fake, autograd and the public function."""

from __future__ import annotations

import torch

from din_kernels import backends, checks
from din_kernels.backends.reference.dice import dice as _reference
from din_kernels.ops.schemas import library

# --- implementation, fake and autograd of the registered ops ---------------------------------------------------------


def _forward(*arguments):
    *arguments, backend = arguments
    return backends.module(backend, "dice").forward(*arguments)


def _backward(*arguments):
    *arguments, backend = arguments
    return backends.module(backend, "dice").backward(*arguments)


def _forward_fake(x, alpha, weight, bias, mean, var, mask, training, eps, backend):
    count = torch.empty((), dtype=torch.int64, device=x.device)
    return x.new_empty(x.shape), alpha.new_empty(alpha.shape), alpha.new_empty(alpha.shape), count


def _backward_fake(grad_y, x, alpha, weight, bias, mean, var, mask, training, eps, backend):
    affine = (alpha.new_empty(0 if given is None else given.shape) for given in (weight, bias))
    return x.new_empty(x.shape), alpha.new_empty(alpha.shape), *affine


def _setup_context(ctx, inputs, output):
    x, alpha, weight, bias, _, _, mask, *ctx.options = inputs
    _, mean, var, _ = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, alpha, weight, bias, mean, var, mask)


def _autograd(ctx, grad_y, *_):
    x, alpha, weight, bias, mean, var, mask = ctx.saved_tensors
    grads = torch.ops.din_kernels.dice_backward(
        grad_y, x, alpha, weight, bias, mean, var, mask, *ctx.options
    )  # fmt: skip
    affine = (None if given is None else grad for given, grad in zip((weight, bias), grads[2:], strict=True))
    return (*grads[:2], *affine, *(None,) * 6)


def _no_double_backward(ctx, *grads):
    raise NotImplementedError(
        "dice has no double backward: its gradients cannot be differentiated again; "
        "use din_kernels.use_backend('reference') for that"
    )


library.impl("dice", _forward, "CompositeExplicitAutograd")
library.impl("dice_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("din_kernels::dice", _forward_fake, lib=library)
torch.library.register_fake("din_kernels::dice_backward", _backward_fake, lib=library)
torch.library.register_autograd("din_kernels::dice", _autograd, setup_context=_setup_context, lib=library)
torch.library.register_autograd("din_kernels::dice_backward", _no_double_backward, lib=library)


# --- checks and public function ---------------------------------------------------------------------------------------


def _check(x, alpha, mean, var, weight, bias, training, mask) -> None:
    checks.is_tensor("x", x)
    checks.is_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must have shape [..., C], got {list(x.shape)}")
    channels = x.shape[-1]
    given = {"alpha": alpha, "weight": weight, "bias": bias}
    if not training:
        given |= {"mean": mean, "var": var}
    for name, value in given.items():
        if value is None and name in ("weight", "bias"):
            continue
        checks.is_tensor(name, value, 1, f"[{channels}]")
        one_for_all = name == "alpha" and value.shape[0] == 1
        if value.shape[0] != channels and not one_for_all:
            raise ValueError(f"{name} must have shape [{channels}], got {list(value.shape)}")
        checks.same_device(name, value, "x", x)
    if mask is not None:
        checks.is_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, true where valid, got {mask.dtype}")
        checks.has_shape("mask", mask, tuple(x.shape[:-1]), " (x without its channels)")
        checks.same_device("mask", mask, "x", x)


def dice(
    x: torch.Tensor,
    alpha: torch.Tensor,
    mean: torch.Tensor | None = None,
    var: torch.Tensor | None = None,
    *,
    training: bool,
    eps: float = 1e-8,
    mask: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
):
    """y = x (alpha + (1 - alpha) p) with p = sigmoid((x - mean) / sqrt(var + eps)), per channel (equation 5).

    Args:
        x: `[..., C]` floating point.
        alpha: `[C]` or `[1]`, learnable.
        mean, var: `[C]` running statistics, used and needed when not training; they get no gradient.
        training: take mean and biased variance over the valid rows of x, in fp32 at least; gradients flow through both.
        eps: added to the variance (the paper's 1e-8).
        mask: `[...]` bool, true where valid; other rows give 0 and count in no statistic.
        weight, bias: `[C]` of an affine batch norm inside the sigmoid, p = sigmoid(weight * (...) + bias), which some
            libraries have and the paper has not.

    Returns:
        y `[..., C]`, the mean and variance that were used `[C]`, and the number of valid rows (0-D).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        din_kernels.BackendError: a forced backend cannot serve the call.

    Example:
        >>> y, mean, var, count = dice(torch.randn(32, 8), torch.zeros(8), training=True)
        >>> y.shape, int(count)
        (torch.Size([32, 8]), 32)
    """
    _check(x, alpha, mean, var, weight, bias, training, mask)
    backend = backends.select(backends.Request("dice", x.device.type, x.dtype))
    if backend == "reference":
        running = (None, None) if training else (mean.detach(), var.detach())
        return _reference(x, alpha, *running, training, eps, mask, weight, bias)
    # Every operation on x, alpha or y that changes nothing would still cost a node of the graph, 5 us both ways.
    channels, wide = x.shape[-1], torch.promote_types(x.dtype, torch.float32)
    rows = x if x.dim() == 2 else x.reshape(-1, channels)
    alpha = alpha.to(wide)
    alpha = alpha if alpha.shape[0] == channels else alpha.expand(channels)
    mask = None if mask is None else mask.reshape(-1)
    if not training:
        mean, var = mean.detach().to(wide), var.detach().to(wide)
    weight, bias = (None if given is None else given.to(wide) for given in (weight, bias))
    y, mean, var, count = torch.ops.din_kernels.dice(
        rows, alpha, weight, bias, mean, var, mask, training, float(eps), backend
    )
    return y if x.dim() == 2 else y.view(x.shape), mean, var, count
