"""`mba_penalty` on the CPU: tensors to pointers for the compiled core."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.cpu.sparse_update import counts_array, name_of
from din_kernels.backends.cpu.sparse_update import refuses as _refuses


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None: as for `sparse_update`."""
    return _refuses(request)


def forward(weight, ids, counts, coeff, padding_idx):
    """Kernel call of the op's forward: penalty [], unique [N], unique_count []."""
    from din_kernels import _cpu

    weight, ids = weight.contiguous(), ids.contiguous()
    _alive, counts_address, counts_type = counts_array(counts)
    unique = torch.empty(ids.numel(), dtype=torch.int64)
    penalty = _cpu.mba_penalty_forward(
        name_of(weight.dtype), *weight.shape, ids.numel(), weight.data_ptr(), ids.data_ptr(),
        name_of(ids.dtype), int(ids.max()) if ids.numel() else 0, counts_address, counts_type, coeff, padding_idx,
        unique.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.tensor(penalty, dtype=wide), unique, (unique >= 0).sum()


def backward(grad, weight, unique, unique_count, counts, coeff, entries, sparse):
    """Kernel call of the op's backward: gradients of rows unique[:entries], or of all of weight."""
    from din_kernels import _cpu

    weight, unique, count = weight.contiguous(), unique.contiguous(), int(unique_count)
    _alive, counts_address, counts_type = counts_array(counts)
    if sparse:
        out = weight.new_empty(entries, weight.shape[1])
        out[count:] = 0
    else:
        out = torch.zeros_like(weight)
    _cpu.mba_penalty_backward(
        name_of(weight.dtype), *weight.shape, unique.numel(), weight.data_ptr(), unique.data_ptr(), count,
        counts_address, counts_type, coeff, float(grad), not sparse, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out
