"""Which backend serves a call.

CPU tensors go to `cpu`, GPU tensors to `triton`, what no kernel supports to `reference`. A forced backend
that cannot serve raises an error that names the reason; it never falls back.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from din_kernels import config

NAMES = ("cpu", "cuda", "triton", "reference")
OPS = ("local_activation", "dice", "mba_penalty", "sparse_update")
# CUDA C++ is never the automatic choice until its tests have passed on a GPU: use_backend("cuda") asks for it.
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}
_forced: ContextVar[tuple[str, tuple[str, ...]] | None] = ContextVar("din_kernels_backend", default=None)


@dataclass(frozen=True)
class Request:
    """What a call asks of a backend: the op, its device and dtype, and its options by name.

    The option "beyond_kernels" is why no kernel can serve the call, whatever the backend.
    """

    op: str
    device: str
    dtype: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)


def extent(size: int) -> int:
    """`size` for a Request; while tracing, where it may be a symbol, the most that an index of its type counts."""
    if not torch.compiler.is_compiling():
        return size
    for limit in (2**31 - 1, 2**32 - 1):
        if size <= limit:
            return limit
    return 2**63 - 1


class BackendError(RuntimeError):
    """The forced backend cannot serve the call."""


@contextlib.contextmanager
def use_backend(name: str, ops: tuple[str, ...] = OPS):
    """Within the block, serve `ops` by backend `name` ("cpu", "cuda", "triton" or "reference") or raise BackendError.

    A function that torch.compile has traced keeps the backend that was in force then.

    Raises:
        ValueError: unknown backend or op.

    Example:
        >>> with use_backend("reference"):
        ...     pooled = unit(query, history)
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    for op in ops:
        if op not in OPS:
            raise ValueError(f"ops must be among {', '.join(map(repr, OPS))}, got {op!r}")
    token = _forced.set((name, tuple(ops)))
    try:
        yield
    finally:
        _forced.reset(token)


def _package(name: str):
    try:
        return importlib.import_module(f"din_kernels.backends.{name}")
    except ModuleNotFoundError as missing:
        if missing.name != f"din_kernels.backends.{name}":
            raise
        return None


def unavailable(name: str) -> str | None:
    """Why backend `name` cannot run on this machine, or None."""
    package = _package(name)
    return f"this version has no {name} kernels" if package is None else package.unavailable()


def available() -> dict[str, str | None]:
    """For every backend: None where it runs on this machine, else the reason why it does not."""
    return {name: unavailable(name) for name in NAMES}


def remark(name: str) -> str | None:
    """What a user should know before choosing backend `name`, or None."""
    return getattr(_package(name), "REMARK", None)


def module(name: str, op: str):
    """The backend's module of the op, or None where it has none."""
    try:
        return importlib.import_module(f"din_kernels.backends.{name}.{op}")
    except ModuleNotFoundError as missing:
        if not missing.name.startswith("din_kernels.backends."):
            raise
        return None


def refuses(name: str, request: Request) -> str | None:
    """Why backend `name` cannot serve `request`, or None."""
    reason = unavailable(name)
    if reason is None and name != "reference":
        reason = request.options.get("beyond_kernels")
    if reason is None:
        served_by = module(name, request.op)
        reason = f"it has no kernel for {request.op}" if served_by is None else served_by.refuses(request)
    return reason


def select(request: Request) -> str:
    """The backend that serves `request`.

    Raises:
        BackendError: the backend forced by `use_backend` or DIN_KERNELS_BACKEND cannot serve it.
        ValueError: DIN_KERNELS_BACKEND names no backend.
    """
    return _selected(request.op, request.device, request.dtype, tuple(request.options.items()))


@torch.compiler.assume_constant_result  # torch.compile traces no ContextVar and no import
def _selected(op: str, device: str, dtype: torch.dtype, options: tuple[tuple[str, Any], ...]) -> str:
    request = Request(op, device, dtype, dict(options))
    forced, ops = _forced.get() or (config.forced_backend(), OPS)
    if forced is not None and op in ops:
        if forced not in NAMES:
            raise ValueError(f"DIN_KERNELS_BACKEND must be one of {', '.join(map(repr, NAMES))}, got {forced!r}")
        reason = refuses(forced, request)
        if reason is not None:
            raise BackendError(f"backend {forced!r} cannot serve {op}: {reason}")
        return forced
    for name in _PREFERENCE.get(device, ("reference",)):
        if refuses(name, request) is None:
            return name
        if name == "cpu":
            _warn_unavailable(name)
    raise AssertionError("the reference serves every request")


@functools.cache  # once
def _warn_unavailable(name: str) -> None:
    reason = unavailable(name)
    if reason is not None:
        warnings.warn(f"the reference serves instead of backend {name!r}: {reason}", RuntimeWarning, stacklevel=5)


def capabilities(device: str = "cpu") -> list[tuple[str, str, str, str]]:
    """Rows (op, option, value, backend): which backend serves which option on this machine, other options default.

    Where the forced backend refuses, its refusal stands for a name.
    """

    def serving(request: Request) -> str:
        try:
            return select(request)
        except BackendError as refused:
            return f"none: {refused}"

    default = {"features": "concat", "activation": "sigmoid", "normalize": "none",
               "dice_training": False, "query_to_user": False, "gather": False, "stats": "valid",
               "layout": "packed", "query_widths": (64,), "row_widths": (64,), "hidden": (80, 40),
               "backward": True}  # fmt: skip
    known = {
        "features": ("concat", "product", "outer"),
        "activation": ("sigmoid", "relu", "prelu", "tanh", "identity", "dice"),
        "normalize": ("none", "softmax"),
        "dice_training": (True, "some"),
        "query_to_user": (True,),
        "gather": (True,),
        "stats": ("padded",),
        "layout": ("packed", "padded", "masked"),
    }
    rows = []
    for option, values in known.items():
        for value in values:
            options = (
                default | {option: value} | ({"activation": "dice"} if option in ("dice_training", "stats") else {})
            )
            name = serving(Request("local_activation", device, torch.float32, options))
            rows.append(("local_activation", option, str(value), name))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        name = serving(Request("local_activation", device, dtype, default))
        rows.append(("local_activation", "dtype", str(dtype).removeprefix("torch."), name))
    for op in OPS[1:]:
        rows.append((op, "", "", serving(Request(op, device, torch.float32))))
    return rows
