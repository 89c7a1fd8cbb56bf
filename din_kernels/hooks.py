"""Whether a module computes what its class says: fused calls read the parameters of modules and do not call them."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as nn_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks_of_all_modules() -> bool:
    """Whether a hook is registered for every module, as by torch.nn.modules.module.register_module_forward_hook."""
    return any(getattr(nn_module, f"_global{hooks}") for hooks in _HOOKS)


def changed(name: str, module: nn.Module, kind: type[nn.Module]) -> str | None:
    """How `module`, called `name`, does more or other than the forward of `kind`; None where it does not."""
    if type(module).forward is not kind.forward:
        return f"{name} is a {type(module).__name__}, not a {kind.__name__}"
    if "forward" in module.__dict__:
        return f"the forward of {name} was replaced"
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return f"{name} has hooks"
    return None
