"""SiLU far from 0, where z sigmoid(z) multiplies a large number by a small one: a claim made of every backend."""

from __future__ import annotations

import pytest
import torch

import din_kernels as dk

POWERS = 2.0 ** torch.arange(-20, 101, 4, dtype=torch.float64)  # 2^100, squared beyond the range of fp32


def silu_is_torchs(backend: str, dtype: torch.dtype, device: str) -> None:
    """Asserts that y and dy/dz of silu are those of torch.nn.functional.silu, NaN and infinite z among them."""
    z = torch.cat([-POWERS, POWERS, torch.tensor([0.0, float("nan")], dtype=torch.float64)])
    one_row = torch.tensor([0, len(z)], device=device)
    for shift in (0.0, float("inf"), float("-inf")):
        rows = z.to(device, dtype).requires_grad_()
        expected_of = z.clone().requires_grad_()
        expected = torch.nn.functional.silu(expected_of + shift)
        pick_k = torch.tensor([[0.0, 1, 0, 0]], device=device, dtype=dtype)
        with dk.use_backend(backend):
            try:
                _, weights = dk.local_activation(
                    torch.zeros(1, 1, device=device, dtype=dtype),
                    dk.Jagged(rows.view(-1, 1), one_row),
                    [pick_k, torch.ones(1, 1, device=device, dtype=dtype)],
                    [torch.full((1,), shift, device=device, dtype=dtype), torch.zeros(1, device=device, dtype=dtype)],
                    activation="silu",
                    return_weights=True,
                )
            except dk.BackendError as refused:
                pytest.skip(str(refused))
        close = {"rtol": 1e-5, "atol": 1e-35, "equal_nan": True}
        torch.testing.assert_close(weights.values.cpu().double(), expected, **close)
        (slope,) = torch.autograd.grad(weights.values.sum(), rows)
        (expected_slope,) = torch.autograd.grad(expected.sum(), expected_of)
        torch.testing.assert_close(slope.cpu().double(), expected_slope, **close)
