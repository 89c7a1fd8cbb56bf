"""Claims about torch.func and forward-mode AD: the reference follows them, kernels that cannot are refused by name."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import din_kernels as dk

IDS, COUNTS = torch.tensor([1, 1, 2]), torch.tensor([1, 2, 3, 4, 5])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_of(activation):
    torch.manual_seed(0)
    return dk.nn.LocalActivationUnit(4, (3,), activation, dtype=torch.float64).eval()


FUNCTIONS = {
    "unit": (lambda x: unit_of("dice")(x, normal(5, 3, 4, seed=1)).square().sum(), normal(5, 4)),
    "dice": (lambda x: dk.dice(x, normal(4), training=True)[0].square().sum(), normal(5, 4)),
    "penalty": (lambda x: dk.mba_penalty(x, IDS, COUNTS, 0.3), normal(5, 4)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_func_grad_and_forward_mode_equal_the_backward(name):
    function, x = FUNCTIONS[name]
    leaf, tangent = x.clone().requires_grad_(), normal(5, 4, seed=2)
    with dk.use_backend("cpu"):
        (expected,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(function)(x), expected, rtol=1e-10, atol=1e-12)
    along = (expected * tangent).sum()
    torch.testing.assert_close(torch.func.jvp(function, (x,), (tangent,))[1], along, rtol=1e-10, atol=1e-12)
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, along, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_forced_backend_refuses_transforms_by_name(name):
    function, x = FUNCTIONS[name]
    with dk.use_backend("cpu"):
        with pytest.raises(dk.BackendError, match="no derivative for torch.func.grad"):
            torch.func.grad(function)(x)
        with pytest.raises(dk.BackendError, match="no derivative for forward-mode AD"):
            torch.func.jvp(function, (x,), (x,))
