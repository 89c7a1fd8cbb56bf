"""`mba_penalty` on a GPU: tensors to pointers for the CUDA kernels."""

from __future__ import annotations

import torch

from din_kernels.backends import Request
from din_kernels.backends.cuda import compiled, name_of, stream_of, workspace
from din_kernels.backends.cuda.sparse_update import counts_array
from din_kernels.backends.cuda.sparse_update import refuses as _refuses


def refuses(request: Request) -> str | None:
    """Why these kernels cannot serve the request, or None: as for `sparse_update`."""
    return _refuses(request)


def forward(weight, ids, counts, coeff, padding_idx):
    """Kernel call of the op's forward: penalty [], unique [N], unique_count []."""
    kernels = compiled()
    weight, ids = weight.contiguous(), ids.contiguous()
    counts, counts_address, counts_type = counts_array(counts)
    unique, unique_count = ids.new_empty(ids.numel(), dtype=torch.int64), ids.new_zeros((), dtype=torch.int64)
    penalty = weight.new_zeros((), dtype=torch.float32)
    if ids.numel() and weight.numel():
        scratch = workspace("mba_penalty", weight, kernels.mba_penalty_workspace(weight.shape[0], ids.numel()))
        with stream_of(weight) as stream:
            kernels.mba_penalty_forward(
                name_of(weight.dtype), *weight.shape, ids.numel(), weight.data_ptr(), ids.data_ptr(),
                name_of(ids.dtype), counts_address, counts_type, coeff, padding_idx, unique.data_ptr(),
                unique_count.data_ptr(), penalty.data_ptr(), scratch.data_ptr(), stream,
            )  # fmt: skip
    else:
        unique.fill_(-1)
    return penalty.to(weight.dtype), unique, unique_count


def backward(grad, weight, unique, unique_count, counts, coeff, entries, sparse):
    """Kernel call of the op's backward: gradients of rows unique[:entries], or of all of weight."""
    kernels = compiled()
    weight, unique = weight.contiguous(), unique.contiguous()
    counts, counts_address, counts_type = counts_array(counts)
    grad = grad.to(torch.float32)
    out = weight.new_empty(entries, weight.shape[1]) if sparse else torch.zeros_like(weight)
    if out.numel() and unique.numel():
        with stream_of(weight) as stream:
            kernels.mba_penalty_backward(
                name_of(weight.dtype), *weight.shape, unique.numel(), weight.data_ptr(), unique.data_ptr(),
                unique_count.data_ptr(), counts_address, counts_type, coeff, grad.data_ptr(), not sparse,
                entries if sparse else unique.numel(), out.data_ptr(), stream,
            )  # fmt: skip
    return out
