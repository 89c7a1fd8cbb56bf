"""Calls as the compiled modules take them: each tensor becomes (address, dtype, shape), which csrc/python/call.h reads.

The entries of a description are the fields of the named tuples in `calls.py`, so neither this file nor a backend lists
them again.
"""

from __future__ import annotations

from typing import Any

import torch

from din_kernels.backends.calls import DiceCall

_NAMES = {
    dtype: str(dtype).removeprefix("torch.")
    for dtype in (
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.int32,
        torch.int64,
        torch.bool,
        torch.uint8,
    )
}
_COUNT_DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64)


class Description:
    """Descriptions of one call. It keeps alive the tensors whose addresses it gave, so it must outlive the call."""

    def __init__(self):
        self._alive: list[torch.Tensor] = []

    def array(self, tensor: torch.Tensor | None) -> tuple[int, str, torch.Size] | None:
        """Address, dtype and shape of the tensor, or of a contiguous copy; None for one that is left out."""
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr(), _NAMES[tensor.dtype], tensor.shape

    def of(self, fields: Any) -> dict[str, Any]:
        """The fields of a named tuple by name."""
        return {name: self._entry(value) for name, value in zip(fields._fields, fields, strict=True)}

    def _entry(self, value):
        if isinstance(value, torch.Tensor):
            return self.array(value)
        if isinstance(value, (list, tuple)):
            return [self._entry(each) for each in value]
        return value


def name_of(dtype: torch.dtype) -> str:
    """What the compiled modules call a dtype."""
    return _NAMES[dtype]


def readable_counts(counts: torch.Tensor) -> torch.Tensor:
    """n_j in a dtype that kernels read."""
    return counts if counts.dtype in _COUNT_DTYPES else counts.to(torch.float32)


def room_for_statistics(call: DiceCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and var of a result of `dice`: room for those of the batch in training, else copies of those given."""
    if call.training:
        return torch.empty_like(call.alpha), torch.empty_like(call.alpha)
    assert call.mean is not None and call.var is not None
    return call.mean.clone(), call.var.clone()
