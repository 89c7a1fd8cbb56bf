"""Tensors that were made under `torch.inference_mode`, which autograd saves for no backward.

Kernels' ops keep them beside what autograd saves (`ops.registration.keep`). Operations of torch itself, which the
reference and the models are made of, refuse them, so these are given copies.
"""

from __future__ import annotations

from typing import Any

import torch

from din_kernels.jagged import Jagged


def savable(value: Any) -> Any:
    """`value` with a copy of every inference tensor in it, where autograd may have to save it.

    Lists, named tuples, dicts and Jagged are looked into. Nothing is copied while no gradient is recorded, and nothing
    while tracing, where tensors are not yet those of a call.
    """
    if torch.compiler.is_compiling():  # asked first, since Dynamo traces no question about inference mode
        return value
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return value
    return _savable(value)


def _savable(value):
    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {name: _savable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_savable(each) for each in value]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_savable, value))
    if isinstance(value, Jagged) and (value.values.is_inference() or value.offsets.is_inference()):
        return Jagged._trusted(_savable(value.values), _savable(value.offsets))
    return value
