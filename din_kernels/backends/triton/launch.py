"""Launches of Triton kernels that bind their arguments once.

`kernel[grid](...)` describes every argument anew, down to the tensors in named tuples, and looks for the compiled kernel
by a text made of all that: 50 us and more for the unit's arguments. Here a launch that is like one before hands its
arguments to the compiled kernel of that one. What makes two launches alike is what Triton compiles a kernel for:

    kernel, device, constants, options (num_warps, ...), and per argument
    a tensor       its dtype, and whether its address is a multiple of 16
    an integer     its width; unless the kernel does not specialize on it, also whether it is 1 or a multiple of 16
    a tuple        its class, and the same of its entries
    anything else  its class, and whether it is None

The first launch of a kind goes through Triton, which checks and compiles. So does every launch where something is
different from what this file knows: the interpreter, hooks of a profiler, a tool that has replaced `JITFunction.run`, a
version of Triton that this file was not written for, an argument of another class, a global of the kernel that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# Versions whose JITFunction.run hands the compiled kernel what `launch` does.
_KNOWN = triton.__version__.split("+")[0].rsplit(".", 1)[0] in ("3.6", "3.9")
_run = JITFunction.run


class _Compiled(NamedTuple):
    """A kernel that is compiled and loaded, and what every launch of it takes."""

    launcher: Callable[..., None]
    function: Any  # its handle on the device
    metadata: Any
    constants: tuple[Any, ...]  # behind the arguments, in the order of the kernel's parameters


class _Unknown(Exception):
    """An argument of a class that this file does not know."""


_compiled: dict[Any, _Compiled] = {}
_MOST = 10_000  # kinds of launches that are kept


def launch(
    kernel, grid: tuple[int, ...], args: tuple[Any, ...], constants: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Launches `kernel[grid](*args, **constants, **options)`.

    Args:
        kernel: by `triton.jit`, its `tl.constexpr` parameters behind all others.
        grid: programs along one to three axes.
        args: what the kernel takes at run time.
        constants: its `tl.constexpr` parameters by name.
        options: num_warps, num_stages, maxnreg and the like.
    """
    key = _key(kernel, args, constants, options)
    try:
        found = None if key is None else _compiled.get(key)
    except TypeError:  # a constant that cannot be a key
        found = key = None
    if found is None:
        made = kernel[grid](*args, **constants, **options)
        if key is not None and isinstance(made, CompiledKernel):
            _keep(key, kernel, made, len(args), constants)
        return
    x, y, z = (*grid, 1, 1)[:3]
    stream = driver.active.get_current_stream(key[1])
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    found.launcher(x, y, z, stream, found.function, found.metadata, None, *hooks, *args, *found.constants)


def _keep(key, kernel, made: CompiledKernel, args: int, constants: Mapping[str, Any]) -> None:
    """Keeps a compiled kernel for launches that are like the one it was compiled for."""
    behind = kernel.params[args:]
    if made.metadata.target.backend != "cuda":
        return  # other drivers look at more of a tensor
    if not all(param.is_constexpr and param.name in constants for param in behind) or len(behind) != len(constants):
        return
    if len(_compiled) >= _MOST:
        _compiled.clear()
    values = tuple(constants[param.name] for param in behind)
    _compiled[key] = _Compiled(made.run, made.function, made.packed_metadata, values)


# --- what makes launches alike ----------------------------------------------------------------------------------------


def _key(kernel, args, constants, options) -> tuple[Any, ...] | None:
    """What tells launches apart, the device second; None where the launch is Triton's."""
    if type(kernel) is not JITFunction or not _KNOWN or JITFunction.run is not _run or _watched(kernel):
        return None
    try:
        described = tuple(
            [_described(arg, specialized) for arg, specialized in zip(args, _specialized(kernel), strict=False)]
        )
    except _Unknown:
        return None
    device = driver.active.get_current_device()
    return kernel, device, described, len(constants), *constants.items(), *options.items()


def _watched(kernel: JITFunction) -> bool:
    """Whether something looks at launches, or would change what is compiled."""
    runtime = knobs.runtime
    if kernel.pre_run_hooks or runtime.add_stages_inspection_hook is not None or runtime.debug:
        return True
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):
            return True
    if knobs.compilation.instrumentation_mode:
        return True
    used = kernel.used_global_vals
    return bool(used) and any(where.get(name, _Unknown) != value for (name, _), (value, where) in used.items())


_by_kernel: dict[JITFunction, tuple[bool, ...]] = {}


def _specialized(kernel: JITFunction) -> tuple[bool, ...]:
    """Per parameter whether Triton compiles a kernel for its value."""
    found = _by_kernel.get(kernel)
    if found is None:
        found = _by_kernel[kernel] = tuple(not param.do_not_specialize for param in kernel.params)
    return found


def _described(arg, specialized: bool):
    """What Triton compiles a kernel for of an argument."""
    kind = type(arg)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return arg.dtype, arg.data_ptr() % 16 == 0
    if kind is int:
        width = 32 if -(2**31) <= arg < 2**31 else 64 if arg < 2**63 else 65
        return (width, arg == 1, arg % 16 == 0) if specialized else width
    if arg is None or kind is float or kind is bool:
        return kind
    if isinstance(arg, tuple):
        return kind, tuple([_described(each, specialized) for each in arg])
    raise _Unknown
