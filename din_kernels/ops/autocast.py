"""What autocast asks of the ops."""

from __future__ import annotations

import contextlib

import torch

# Asked once, here: torch.compile of torch 2.11 cannot trace the question.
_DEVICES = frozenset(
    each for each in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia") if torch.amp.is_autocast_available(each)
)


def any_autocast() -> bool:
    """Whether there is autocast for any device; asks for less time than `autocast_dtype`."""
    return torch._C._is_any_autocast_enabled()


def autocast_dtype(device: str) -> torch.dtype | None:
    """In which matrix products on `device` compute under autocast; None outside it."""
    if device not in _DEVICES or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def without_autocast(device: torch.device):
    """Context for kernels that compute in dtypes of their own: autocast reaches into an op's implementation, and into a
    backward called under it, where it would lower our own products."""
    if autocast_dtype(device.type) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
