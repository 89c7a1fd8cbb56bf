"""The calls of our ops that some code makes, and opcheck on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def calls_of_ops(run: Callable[[], Any]) -> list[tuple[Any, tuple, Any]]:
    """(op, arguments, results) of every call of an op of ours in `run`, in order."""
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            results = function(*args, **(kwargs or {}))
            if function.namespace == "din_kernels":
                seen.append((function, args, results))
            return results

    with Record():
        run()
    return seen


def ops_called(run: Callable[[], Any]) -> dict:
    """(op, arguments) of every op of ours that `run` calls, in order."""
    return {function: arguments for function, arguments, _ in calls_of_ops(run)}


def results_of_ops(run: Callable[[], Any]) -> list[tuple[str, list[torch.Tensor]]]:
    """(name, tensors that it returned) of every call of an op of ours in `run`."""
    return [(function.name(), tree_leaves(results)) for function, _, results in calls_of_ops(run)]


def opcheck_forward_and_backward(called: dict) -> None:
    """opcheck on the unit's forward op, whose inputs ask for gradients, and on its backward op."""
    names = ["din_kernels::local_activation", "din_kernels::local_activation_backward"]
    assert [function.name() for function in called] == names

    def fresh(value, grad):
        if isinstance(value, torch.Tensor):
            return value.detach().clone().requires_grad_(grad and value.is_floating_point())
        return [fresh(each, grad) for each in value] if isinstance(value, list) else value

    for (function, arguments), grad in zip(called.items(), (True, False), strict=True):
        torch.library.opcheck(function, tuple(fresh(each, grad) for each in arguments))
