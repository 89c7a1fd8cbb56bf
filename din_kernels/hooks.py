"""Whether a module computes what its class says: fused calls read the parameters of modules and do not call them."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as nn_module


def hooks_of_all_modules() -> bool:
    """Whether a hook is registered for every module, as by torch.nn.modules.module.register_module_forward_hook."""
    return bool(
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    )


def changed(name: str, module: nn.Module, kind: type[nn.Module]) -> str | None:
    """How `module`, called `name`, does more or other than the forward of `kind`; None where it does not."""
    if type(module).forward is not kind.forward:
        return f"{name} is a {type(module).__name__}, not a {kind.__name__}"
    if "forward" in module.__dict__:
        return f"the forward of {name} was replaced"
    if not _without_hooks(module):
        return f"{name} has hooks"
    return None


def as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `changed` has nothing to say of `module`, in a tenth of its time."""
    return type(module).forward is kind.forward and "forward" not in module.__dict__ and _without_hooks(module)


def _without_hooks(module: nn.Module) -> bool:
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
