"""Launches of Triton kernels that bind their arguments once.

`kernel[grid](...)` binds arguments to names, describes each of them, down to the tensors in named tuples, and looks for
the compiled kernel by all that. Here a launch that is like one before hands its arguments to the compiled kernel of
that one. Launches are alike where kernel, device, constants and options are the same, and so is per argument what
Triton compiles a kernel for:

    a tensor   dtype, and whether its address is a multiple of 16
    a number   its class, for an integer its width and whether it is 1 or a multiple of 16
    a tuple    its class and length, and the same of its entries

where do_not_specialize leaves out addresses and values. A function made for the arguments of a kind's first launch asks
all this of later ones without a loop. `benchmarks/call_overhead.py` measures both ways.

The first launch of a kind goes through Triton, which checks and compiles. So does every launch where something is
different from what this file knows: the interpreter, hooks of a profiler, a tool that has replaced `JITFunction.run`, a
version of Triton that this file was not written for, an argument of another class, a global of the kernel that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


class _Kind(NamedTuple):
    """Launches that are alike, and the kernel that is compiled and loaded for them."""

    like: Callable[..., bool]  # of the arguments, whether theirs is this kind
    constants: dict[str, Any]
    options: dict[str, Any]
    launcher: Callable[..., None]
    function: Any  # the kernel's handle on the device
    metadata: Any
    behind: tuple[Any, ...]  # the constants in the order of the kernel's parameters


_kinds: dict[tuple[JITFunction, int], list[_Kind]] = {}  # by kernel and device, the last one used first
_MOST = 32  # kinds of one kernel that are kept


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
    if type(kernel) is not JITFunction or not _KNOWN or JITFunction.run is not _run or _watched(kernel):
        kernel[grid](*args, **constants, **options)
        return
    device = driver.active.get_current_device()
    kinds = _kinds.setdefault((kernel, device), [])
    kind = _kind_of(kinds, args, constants, options)
    if kind is None:
        made = kernel[grid](*args, **constants, **options)
        if isinstance(made, CompiledKernel):
            _keep(kinds, kernel, made, args, constants, options)
        return
    x, y, z = (*grid, 1, 1)[:3]
    stream, runtime = driver.active.get_current_stream(device), knobs.runtime
    hooks = runtime.launch_enter_hook, runtime.launch_exit_hook  # without calls
    kind.launcher(x, y, z, stream, kind.function, kind.metadata, None, *hooks, *args, *kind.behind)


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
    return bool(kernel.used_global_vals) and _changed(kernel)


_globals: dict[JITFunction, tuple[tuple[dict, str, Any], ...]] = {}  # those of each kernel that were found unchanged


def _changed(kernel: JITFunction) -> bool:
    """Whether a global that the kernel uses has another value than it was compiled with."""
    used, known = kernel.used_global_vals, _globals.get(kernel, ())
    if len(known) == len(used):
        for where, name, value in known:
            if where.get(name) is not value:
                break
        else:
            return False
    if any(where.get(name, _run) != value for (name, _), (value, where) in used.items()):
        return True
    _globals[kernel] = tuple((where, name, where[name]) for (name, _), (_, where) in used.items())
    return False


def _kind_of(kinds: list[_Kind], args, constants, options) -> _Kind | None:
    for at, kind in enumerate(kinds):
        if kind.constants == constants and kind.options == options and _is_like(kind, args):
            if at:
                kinds.insert(0, kinds.pop(at))
            return kind
    return None


def _is_like(kind: _Kind, args: tuple[Any, ...]) -> bool:
    try:
        return kind.like(*args)
    except (AttributeError, TypeError):  # an argument of another class, or another number of them
        return False


def _keep(kinds: list[_Kind], kernel: JITFunction, made: CompiledKernel, args, constants, options) -> None:
    """Keeps a compiled kernel for launches that are like the one it was compiled for."""
    front, behind = kernel.params[: len(args)], kernel.params[len(args) :]
    if made.metadata.target.backend != "cuda":
        return  # other backends look at more of a tensor
    if any(param.is_constexpr or param.annotation_type for param in front):
        return
    if {param.name for param in behind} != set(constants) or not all(param.is_constexpr for param in behind):
        return
    like = _like([not p.do_not_specialize for p in front], [not p.do_not_specialize_on_alignment for p in front], args)
    if like is None:
        return
    del kinds[_MOST - 1 :]
    values = tuple(constants[param.name] for param in behind)
    launcher = made.run  # loads the kernel, whose function is there from then on
    kinds.insert(0, _Kind(like, dict(constants), dict(options), launcher, made.function, made.packed_metadata, values))


# --- what makes arguments alike ---------------------------------------------------------------------------------------


def _like(specialized: list[bool], aligned: list[bool], args: tuple[Any, ...]) -> Callable[..., bool] | None:
    """A function of arguments: whether Triton takes them for like `args`. None for a class that is not known here.

    Per parameter of the kernel: whether it is compiled for a number's value, and for an address or a number's being a
    multiple of 16.
    """
    names = [f"a{at}" for at in range(len(args))]
    found: dict[str, Any] = {}  # what the function compares with
    lines = []
    for name, arg, *flags in zip(names, args, specialized, aligned, strict=True):
        asked = list(_questions(name, arg, *flags, found))
        if None in asked:
            return None
        lines += asked
    body = "".join(f"    {line}\n" for line in lines)
    exec(f"def like({', '.join(names)}):\n{body}    return True\n", found)
    return found["like"]


def _questions(name: str, arg, specialized: bool, aligned: bool, values: dict[str, Any]) -> Iterator[str | None]:
    """Lines that return False unless the value called `name` is like `arg`; None where its class is not known."""
    if isinstance(arg, tuple):
        values[f"class_{name}"] = type(arg)
        yield f"if type({name}) is not class_{name} or len({name}) != {len(arg)}: return False"
        entries = [f"{name}_{at}" for at in range(len(arg))]
        if entries:
            yield f"{', '.join(entries)}, = {name}"
        for entry, each in zip(entries, arg, strict=True):
            yield from _questions(entry, each, specialized, aligned, values)
    elif isinstance(arg, torch.Tensor):
        values[f"dtype_{name}"] = arg.dtype
        yield f"if {name}.dtype is not dtype_{name}: return False"
        if specialized and aligned:
            yield f"if {name}.data_ptr() % 16 {'!=' if arg.data_ptr() % 16 == 0 else '=='} 0: return False"
    elif arg is None:
        yield f"if {name} is not None: return False"
    elif type(arg) in (bool, float):
        yield f"if type({name}) is not {type(arg).__name__}: return False"
    elif type(arg) is int:
        low, high = next(each for each in _WIDTHS if each[0] <= arg < each[1])
        yield f"if type({name}) is not int or not {low} <= {name} < {high}: return False"
        if specialized:
            yield f"if {name} {'!=' if arg == 1 else '=='} 1: return False"
        if specialized and aligned:
            yield f"if {name} % 16 {'!=' if arg % 16 == 0 else '=='} 0: return False"
    else:
        yield None


# Integers as Triton sorts them: 32 bits, 64 bits below and above these, 64 bits without sign.
_WIDTHS = ((-(2**31), 2**31), (-(2**63), -(2**31)), (2**31, 2**63), (2**63, 2**64))
