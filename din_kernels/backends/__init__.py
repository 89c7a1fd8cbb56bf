"""Which backend serves a call.

CPU tensors go to `cpu`, GPU tensors to `triton`, what no kernel supports to `reference`. A forced backend
that cannot serve raises an error that names the reason; it never falls back.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import forward_ad

from din_kernels import config, options
from din_kernels.options import OPS

NAMES = tuple(options.BACKENDS)


@dataclass(frozen=True, eq=False)
class _Block:
    """An open `use_backend` block."""

    name: str | None  # None: no backend is forced
    ops: tuple[str, ...]


_own: ContextVar[_Block | None] = ContextVar("din_kernels_backend", default=None)  # innermost of this context
_open: list[_Block] = []  # those of all threads, in the order in which they were opened
_opening = threading.Lock()


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


def use_backend(name: str, ops: tuple[str, ...] = OPS) -> _Forced:
    """Within the block, serve `ops` by backend `name` ("cpu", "cuda", "triton" or "reference") or raise BackendError.

    A thread follows the innermost block that it has opened itself. A thread other than the main one that has opened
    none follows the block that was opened last in the process and is still open: so a block reaches the threads of
    autograd, where activation checkpointing computes forwards again, those of DataParallel, and any that is started
    inside it. What is computed again follows the blocks that are open then, so `backward()` of a checkpointed forward
    belongs into the block; other backwards keep the backend of their forward. A function that torch.compile has traced
    keeps the backend that was in force then.

    Raises:
        ValueError: unknown backend or op.

    Example:
        >>> with use_backend("reference"):
        ...     pooled = unit(query, history)
    """
    return _Forced(name, ops)


class _Forced(contextlib.ContextDecorator):
    """What `use_backend` returns; a generator in its place would take twice the time."""

    def __init__(self, name: str, ops: tuple[str, ...]):
        self._name, self._ops = name, ops

    def _recreate_cm(self) -> _Forced:
        return _Forced(self._name, self._ops)  # a decorated function may be running already

    def __enter__(self) -> None:
        if self._name not in NAMES:
            raise ValueError(f"name must be one of {', '.join(map(repr, NAMES))}, got {self._name!r}")
        for op in self._ops:
            if op not in OPS:
                raise ValueError(f"ops must be among {', '.join(map(repr, OPS))}, got {op!r}")
        self._block = _Block(self._name, tuple(self._ops))
        self._token = _own.set(self._block)
        with _opening:
            _open.append(self._block)

    def __exit__(self, *error) -> None:
        with _opening:
            _open.remove(self._block)
        _own.reset(self._token)


def _block_in_force() -> _Block | None:
    block = _own.get()
    if block is None and threading.get_ident() != threading.main_thread().ident:
        with _opening:
            block = _open[-1] if _open else None
    return block


@functools.cache
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


def device_of(name: str) -> str:
    """On which device the tensors of backend `name` lie here: the kernels of "cuda" may run on their emulation."""
    return "cpu" if name == "cuda" and config.cuda_emulate() else options.BACKENDS[name]


def remark(name: str) -> str | None:
    """What a user should know before choosing backend `name`, or None."""
    return getattr(_package(name), "REMARK", None)


@functools.cache
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
    if torch.compiler.is_compiling():
        return _selected_while_tracing(request.op, request.device, request.dtype, tuple(request.options.items()))
    transform = _transform()
    if transform is not None:
        beyond = {"beyond_kernels": f"its kernels have no derivative for {transform}"}
        request = Request(request.op, request.device, request.dtype, request.options | beyond)
    return _selected(request)


def by_reference(backend: str, device: torch.device) -> bool:
    """Whether the public function computes by the reference itself. On the meta device nobody computes: the op's fake
    gives results of the right shapes, and the reference, whose sizes depend on values, could not."""
    return backend == "reference" and device.type != "meta"


def _transform() -> str | None:
    """The transform in force that only the reference follows; torch.func.vmap is answered by the ops themselves."""
    if forward_ad._current_level >= 0:
        return "forward-mode AD (torch.func.jvp, torch.autograd.forward_ad)"
    innermost = torch._C._functorch.peek_interpreter_stack()
    if innermost is not None and innermost.key() == torch._C._functorch.TransformType.Grad:
        return "torch.func.grad, vjp and what builds on them"
    return None


@torch.compiler.assume_constant_result  # torch.compile traces no ContextVar and no import
def _selected_while_tracing(op: str, device: str, dtype: torch.dtype, asked: tuple[tuple[str, Any], ...]) -> str:
    return _selected(Request(op, device, dtype, dict(asked)))


def _selected(request: Request) -> str:
    op, device = request.op, request.device
    block = _block_in_force()
    if block is None:
        forced, ops = config.forced_backend(), OPS
    else:
        forced, ops = block.name, block.ops
    if forced is not None and op in ops:
        if forced not in NAMES:
            raise ValueError(f"DIN_KERNELS_BACKEND must be one of {', '.join(map(repr, NAMES))}, got {forced!r}")
        reason = refuses(forced, request)
        if reason is not None:
            raise BackendError(f"backend {forced!r} cannot serve {op}: {reason}")
        return forced
    for name in options.DEVICES.get(device, ("reference",)):
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


# A call of the unit as most are: what `capabilities` changes one option of at a time.
TYPICAL_OPTIONS: dict[str, Any] = {
    "features": "concat",
    "activation": "sigmoid",
    "normalize": "none",
    "dice_training": False,
    "query_to_user": False,
    "gather": False,
    "stats": "valid",
    "layout": "packed",
    "query_widths": (64,),
    "history_widths": (64,),
    "hidden": (80, 40),
    "backward": True,
}


def _option_values() -> Iterator[tuple[str, Any]]:
    """Options of the unit whose values kernels may refuse one by one, and these values."""
    values = {
        "features": options.FEATURES,
        "activation": options.ACTIVATIONS,
        "normalize": options.NORMALIZATIONS,
        "dice_training": (True, "some"),
        "query_to_user": (True,),
        "gather": (True,),
        "stats": ("padded",),
        "layout": options.LAYOUTS,
    }
    return ((option, value) for option, each in values.items() for value in each)


def _requests(device: str) -> Iterator[tuple[str, str, Request]]:
    """(option, value, request) of everything that `capabilities` asks for."""
    for option, value in _option_values():
        activation = {"activation": "dice"} if option in ("dice_training", "stats") else {}
        asked = TYPICAL_OPTIONS | activation | {option: value}
        yield option, str(value), Request("local_activation", device, torch.float32, asked)
    for dtype in options.DTYPES:
        yield "dtype", str(dtype).removeprefix("torch."), Request("local_activation", device, dtype, TYPICAL_OPTIONS)
    for op in OPS:
        if op != "local_activation":
            yield "", "", Request(op, device, torch.float32)


def _serving(request: Request) -> str:
    try:
        return select(request)
    except BackendError as refused:
        return f"none: {refused}"


def capabilities(device: str = "cpu") -> list[tuple[str, str, str, str]]:
    """Rows (op, option, value, backend): which backend serves which option on this machine, other options typical.

    Where the forced backend refuses, its refusal stands for a name.
    """
    return [(request.op, option, value, _serving(request)) for option, value, request in _requests(device)]
