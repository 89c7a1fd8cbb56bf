"""Values that no argument expects: what a caller may hand over by mistake, for every kind of valid value."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import torch
from torch import nn

import din_kernels as dk


class Subclass(torch.Tensor):
    """A tensor of a class of its own, as libraries make them."""


def _inference(tensor):
    with torch.inference_mode():
        return tensor.clone()


def _negated(tensor):
    """The same values behind torch's negative bit, where memory holds the opposite."""
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


def _strided(tensor):
    """The same values, every second element of memory."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def _quantized(tensor):
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


# Each takes the valid tensor; one that torch cannot make of it is passed over.
TENSORS = {
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.numpy(),
    "COO": lambda t: t.to_sparse(),
    "CSR": lambda t: t.to_sparse_csr(),
    "mkldnn": lambda t: t.float().to_mkldnn(),
    "quantized": _quantized,
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "nested, jagged": lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged),
    "uninitialized": lambda t: nn.UninitializedParameter(),
    "inference": _inference,
    "negated": _negated,
    "strided": _strided,
    "subclass": lambda t: t.as_subclass(Subclass),
    "parameter": lambda t: nn.Parameter(t.clone()),
    "result of an operation": lambda t: t.clone().requires_grad_() * 1,
    "zero tensor": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda t: t.to(torch.float8_e5m2),
    **{str(d): (lambda t, d=d: t.to(d)) for d in (torch.float64, torch.float16, torch.bfloat16, torch.bool)},
    **{str(d): (lambda t, d=d: t.to(d)) for d in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16)},
    "0-D": lambda t: t.reshape(-1)[0],
    "one more dimension": lambda t: t.unsqueeze(0),
    "one dimension less": lambda t: t[0],
    "empty": lambda t: t[:0],
    "one row short": lambda t: t[:-1],
    "one row more": lambda t: torch.cat([t, t[:1]]),
    "expanded": lambda t: t[:1].expand_as(t),
    "NaN": lambda t: t * torch.nan,
    "huge": lambda t: torch.full_like(t, 2**62),
    "negative": lambda t: -t - 1,
}

_ANYTHING = {
    "None": None,
    "a string": "1",
    "bytes": b"1",
    "True": True,
    "2**70": 2**70,
    "complex number": 1j,
    "an object": object(),
    "a type": int,
    "an empty list": [],
    "a list of a list": [[1.0]],
    "an empty dict": {},
    "a set": {1},
    "a tensor": torch.ones(2),
    "an array": np.ones(2),
    "0-D array": np.array("x"),
    "a module": nn.Linear(2, 2),
}

NUMBERS = _ANYTHING | {
    "-1": -1,
    "0": 0,
    "3": 3,
    "half": 0.5,
    "NaN": float("nan"),
    "inf": float("inf"),
    "10**400": 10**400,
    "numpy float": np.float32(0.5),
    "numpy int": np.int64(1),
    "numpy bool": np.bool_(True),
    "fraction": Fraction(1, 2),
    "0-D tensor": torch.tensor(0.5),
    "0-D parameter": nn.Parameter(torch.tensor(0.5)),
    "0-D integer tensor": torch.tensor(1),
    "0-D bool tensor": torch.tensor(True),
    "0-D complex tensor": torch.tensor(1j),
    "0-D meta tensor": torch.tensor(0.5, device="meta"),
    "0-D float8 tensor": torch.tensor(0.5).to(torch.float8_e5m2),
    "1-D tensor": torch.tensor([0.5]),
}

OTHERS = _ANYTHING | {"a number": 3, "a float": 0.5, "a long string": "no such name", "dtype": torch.float8_e4m3fn}


def on_meta(value):
    """Every tensor of nested arguments on the meta device, where it has a shape and no numbers."""
    if isinstance(value, torch.Tensor):
        moved = value.detach().to("meta")
        if value.requires_grad and value.is_leaf:
            moved.requires_grad_()
        return nn.Parameter(moved, value.requires_grad) if isinstance(value, nn.Parameter) else moved
    if isinstance(value, dk.Jagged):
        return dk.Jagged(on_meta(value.values), on_meta(value.offsets))
    if isinstance(value, list):
        return [on_meta(each) for each in value]
    if isinstance(value, dict):
        return {name: on_meta(each) for name, each in value.items()}
    return value


def replacements(valid) -> list[str]:
    """Names of what may stand for a valid value."""
    if isinstance(valid, torch.Tensor):
        return [*TENSORS, *OTHERS]
    if isinstance(valid, (list, tuple)) and valid:
        return ["an entry", "an entry", "one entry short", "a tuple", *OTHERS]
    if isinstance(valid, dict) and valid:
        return ["a value", "a value", "one key short", *OTHERS]
    return list(OTHERS if isinstance(valid, (str, torch.dtype)) or valid is None else NUMBERS)


def replaced(valid, name: str, rng):
    """(what stands for `valid`, in words what it is); None where torch cannot make it of this value."""
    if name == "an entry" or name == "a value":
        at = rng.choice(list(valid) if isinstance(valid, dict) else range(len(valid)))
        inner = rng.choice(replacements(valid[at]))
        found = replaced(valid[at], inner, rng)
        if found is None:
            return None
        changed = dict(valid) if isinstance(valid, dict) else list(valid)
        changed[at] = found[0]
        return changed, f"[{at!r}] {found[1]}"
    if name in ("one entry short", "one key short"):
        return (dict(list(valid.items())[:-1]) if isinstance(valid, dict) else list(valid)[:-1]), name
    if name == "a tuple":
        return tuple(valid), name
    if isinstance(valid, torch.Tensor) and name in TENSORS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = TENSORS[name](valid.detach())
                tensor = isinstance(made, torch.Tensor)
                if (
                    tensor
                    and valid.requires_grad
                    and made.is_leaf
                    and made.is_floating_point()
                    and made.layout == torch.strided
                ):
                    made.requires_grad_()  # an inference tensor refuses
                return made, name
        except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):
            return None
    return (NUMBERS | OTHERS)[name], name
