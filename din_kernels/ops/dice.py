"""Dice (paper section 5.3) as a torch op: checks, fake, autograd and the public function."""

from __future__ import annotations

import torch

from din_kernels import backends, checks
from din_kernels.backends.calls import (
    DiceCall,
    DiceGradients,
    DiceGrads,
    DiceResult,
    DiceSaved,
    arithmetic_dtype,
)
from din_kernels.backends.reference.dice import dice as _reference
from din_kernels.inference import savable
from din_kernels.ops.direct import run
from din_kernels.ops.registration import Given, Gradient, Op, register

# --- fake and autograd of the registered ops --------------------------------------------------------------------------


def _nothing_to_check(call: DiceCall) -> None:
    """No value of a call leads out of bounds."""


def _fake(call: DiceCall) -> DiceResult:
    return DiceResult(
        y=call.x.new_empty(call.x.shape),
        mean=call.alpha.new_empty(call.alpha.shape),
        var=call.alpha.new_empty(call.alpha.shape),
        count=torch.empty((), dtype=torch.int64, device=call.x.device),
    )


def _backward_fake(call: DiceCall, saved: DiceSaved, grads: DiceGrads) -> DiceGradients:
    x, alpha = call.x.new_empty(call.x.shape), call.alpha.new_empty(call.alpha.shape)
    affine = (call.alpha.new_empty(0 if given is None else given.shape) for given in (call.weight, call.bias))
    return DiceGradients(x, alpha, *affine)


def _formula(given: Given, backward) -> dict:
    call, grad_y = given.call, given.incoming.y
    grads = DiceGradients(*backward(DiceGrads(torch.zeros_like(call.x) if grad_y is None else grad_y)))
    return {
        "x": grads.x,
        "alpha": grads.alpha,
        "weight": None if call.weight is None else grads.weight,
        "bias": None if call.bias is None else grads.bias,
    }


OP = register(
    Op(
        name="dice",
        call=DiceCall,
        result=DiceResult,
        check=_nothing_to_check,
        fake=_fake,
        gradient=Gradient(
            saved=DiceSaved,
            grads=DiceGrads,
            learned=("x", "alpha", "weight", "bias"),
            constant=("mean", "var", "count"),
            fake=_backward_fake,
            formula=_formula,
        ),
    )
)


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
        checks.is_tensor(name, value, 1, "[C]")
        checks.is_real(name, value)
        one_for_all = name == "alpha" and value.shape[0] == 1
        if value.shape[0] != channels and not one_for_all:
            raise ValueError(f"{name} must have shape [{channels}], got {list(value.shape)}")
        checks.same_device(name, value, "x", x)
    if mask is not None:
        checks.is_tensor("mask", mask)
        checks.is_mask("mask", mask)
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

    Inference tensors work as in `local_activation`.

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
    checks.flag("training", training)
    checks.number("eps", eps, at_least=0)
    _check(x, alpha, mean, var, weight, bias, training, mask)
    backend = backends.select(backends.Request("dice", x.device.type, x.dtype))
    # Every operation on x, alpha or y that changes nothing would still cost a node of the graph, 5 us both ways.
    channels, wide = x.shape[-1], arithmetic_dtype(x.dtype)
    alpha = alpha.to(wide)
    call = DiceCall(
        x=x if x.dim() == 2 else x.reshape(-1, channels),
        alpha=alpha if alpha.shape[0] == channels else alpha.expand(channels),
        weight=None if weight is None else weight.to(wide),
        bias=None if bias is None else bias.to(wide),
        mean=None if training or mean is None else mean.detach().to(wide),
        var=None if training or var is None else var.detach().to(wide),
        mask=None if mask is None else mask.reshape(-1),
        training=training,
        eps=float(eps),
    )
    if backends.by_reference(backend, x.device):
        call = savable(call)
        result = DiceResult(
            *_reference(
                call.x, call.alpha, call.mean, call.var, call.training, call.eps, call.mask, call.weight, call.bias
            )
        )
    else:
        result = run(OP, call, backend)
    return result._replace(y=result.y if x.dim() == 2 else result.y.view(x.shape))
