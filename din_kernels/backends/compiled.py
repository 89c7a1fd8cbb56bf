"""Calls as the compiled modules take them: each tensor becomes (address, dtype, shape), which csrc/python/call.h reads.

The entries of a description are the fields of the named tuples in `calls.py`, so neither this file nor a backend lists
them again.
"""

from __future__ import annotations

from typing import Any

import torch

from din_kernels.backends.calls import TENSOR_FIELDS, DiceCall

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
        self._alive: list[Any] = []

    def array(self, tensor: torch.Tensor | None) -> tuple[int, str, torch.Size] | None:
        """Address, dtype and shape of the tensor, or of a contiguous copy; None for one that is left out."""
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr(), _NAMES[tensor.dtype], tensor.shape

    def _entry(self, tensor: torch.Tensor) -> tuple[int, str, torch.Size] | None:
        """As `array`, of a tensor that is alive."""
        if not tensor.is_contiguous():
            return self.array(tensor)
        return tensor.data_ptr(), _NAMES[tensor.dtype], tensor.shape

    def of(self, fields: Any) -> dict[str, Any]:
        """The fields of a named tuple by name."""
        self._alive.append(fields)
        described, array = list(fields), self._entry
        single, lists = TENSOR_FIELDS[type(fields)]
        for at in single:
            if described[at] is not None:
                described[at] = array(described[at])
        for at in lists:
            if described[at]:
                described[at] = [None if each is None else array(each) for each in described[at]]
        return dict(zip(fields._fields, described, strict=True))


def room_like(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Room for as many elements, one after the other, as `tensor` has, in `dtype`."""
    if tensor.dtype == dtype and tensor.is_contiguous():  # in half the time of torch.empty
        return torch.empty_like(tensor)
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device)


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
