"""`sparse_update` on the CPU: tensors to pointers for the compiled core."""

from __future__ import annotations

import torch

from din_kernels.backends import Request

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COUNT_TYPES = (torch.int32, torch.int64, torch.float32, torch.float64)


def name_of(dtype: torch.dtype) -> str:
    """What the core calls a dtype."""
    return str(dtype).removeprefix("torch.")


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None."""
    options = request.options
    if request.device != "cpu":
        return f"its tensors must be on the CPU, got {request.device}"
    if request.dtype not in DTYPES:
        return f"dtype must be float32, float64, bfloat16 or float16, got {request.dtype}"
    if not options.get("contiguous", True):
        return "weight and states must be contiguous"
    for name in ("rows", "entries"):
        if options.get(name, 0) >= 2**32:
            return f"{name} must be below 2^32, got {options[name]}"
    return None


def counts_array(counts: torch.Tensor | None) -> tuple[torch.Tensor | None, int, str]:
    """Counts as the core takes them: the tensor to keep alive, its address and the name of its type."""
    if counts is None:
        return None, 0, "int64"
    if counts.dtype not in COUNT_TYPES:
        counts = counts.to(torch.float32)
    counts = counts.contiguous()
    return counts, counts.data_ptr(), name_of(counts.dtype)


def sparse_update(rule, weight, states, ids, grads, counts, padding_idx, hyper) -> None:
    """Kernel call for one table; weight `[V, D]` and states are updated in place."""
    from din_kernels import _cpu

    if not ids.numel():
        return
    ids, grads = ids.contiguous(), grads.contiguous()
    _alive, counts_address, counts_type = counts_array(counts if hyper.coeff else None)
    states = [*(state.data_ptr() for state in states), 0, 0]
    _cpu.sparse_update(
        name_of(weight.dtype), *weight.shape, ids.numel(), weight.data_ptr(), states[0], states[1],
        ids.data_ptr(), name_of(ids.dtype), int(ids.max()), grads.data_ptr(), counts_address, counts_type,
        padding_idx, rule, hyper.lr, hyper.step, hyper.beta1, hyper.beta2, hyper.eps, hyper.coeff,
        bool(hyper.maximize), bool(hyper.decoupled), torch.get_num_threads(),
    )  # fmt: skip
