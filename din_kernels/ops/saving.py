"""What a forward leaves for its backward on a context of autograd."""

from __future__ import annotations

from typing import Any

import torch

from din_kernels.backends.calls import TENSOR_FIELDS


class _Tensors:
    """Stands for a list of so many tensors among the fields that `keep` leaves on a context."""

    def __init__(self, count: int):
        self.count = count


_TENSOR = object()  # stands for one


def keep(ctx, *parts) -> None:
    """Keeps named tuples for the backward: their tensors as autograd wants them kept, the rest beside.

    Autograd saves no inference tensor, since it could not notice a later change of it: such a tensor (a frozen table,
    ids that were made under `torch.inference_mode`) stays beside as it is, and must not be changed before the backward.
    """
    tensors: list[torch.Tensor] = []
    ctx.parts = []
    for part in parts:
        fields: list[Any] = list(part)
        single, lists = TENSOR_FIELDS[type(part)]
        for at in single:
            field = fields[at]
            if field is not None and not field.is_inference():
                tensors.append(field)
                fields[at] = _TENSOR
        for at in lists:
            field = fields[at]
            if field and not any([each.is_inference() for each in field]):
                tensors += field
                fields[at] = _Tensors(len(field))
        ctx.parts.append((type(part), fields))
    ctx.save_for_backward(*tensors)


def kept(ctx) -> list[Any]:
    """What `keep` kept."""
    tensors = iter(ctx.saved_tensors)
    found = []
    for kind, fields in ctx.parts:
        fields = list(fields)
        single, lists = TENSOR_FIELDS[kind]
        for at in single:
            if fields[at] is _TENSOR:
                fields[at] = next(tensors)
        for at in lists:
            if isinstance(fields[at], _Tensors):
                fields[at] = [next(tensors) for _ in range(fields[at].count)]
        found.append(kind(*fields))
    return found
