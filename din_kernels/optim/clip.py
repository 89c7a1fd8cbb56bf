"""Gradient clipping that knows sparse gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from din_kernels import checks


@torch.no_grad()
def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor],
    max_norm: float,
    norm_type: float | str = 2.0,
    error_if_nonfinite: bool = False,
) -> torch.Tensor:
    """torch.nn.utils.clip_grad_norm_ for parameters some of whose gradients are sparse, which torch's refuses.

    The norm is that of the gradient itself: duplicates of a row are summed first, and `grad` is coalesced thereby. The
    mini-batch aware term joins inside the optimizer's step and is not part of it.

    Args:
        parameters: a tensor or several, whose gradients are scaled in place; those without are left alone.
        max_norm: largest norm of all gradients together.
        norm_type: as in torch.nn.utils.clip_grad_norm_.
        error_if_nonfinite: raise where the norm is NaN or infinite.

    Returns:
        The norm before clipping, 0-D.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; no gradient is changed.
        RuntimeError: error_if_nonfinite, and the norm is not finite.

    Example:
        >>> table = torch.nn.Embedding(10, 4, sparse=True)
        >>> table(torch.tensor([1, 1, 2])).sum().backward()
        >>> clip_grad_norm_(table.parameters(), max_norm=1.0).item()  # sqrt(4 * 2^2 + 4 * 1^2)
        4.4721360206604
    """
    checks.number("max_norm", max_norm, at_least=0, infinite=True)
    if norm_type != "inf":
        checks.number("norm_type", norm_type, at_least=0, infinite=True)
    checks.flag("error_if_nonfinite", error_if_nonfinite)
    given = [parameters] if isinstance(parameters, torch.Tensor) else checks.listed("parameters", parameters)
    for at, parameter in enumerate(given):
        checks.is_tensor(f"parameters[{at}]", parameter)
    gradients = []
    for parameter in given:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        gradients.append(parameter.grad._values() if parameter.grad.is_sparse else parameter.grad)
    norm = torch.nn.utils.get_total_norm(gradients, float(norm_type), error_if_nonfinite)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.to(gradient.device))
    return norm
