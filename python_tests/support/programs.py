"""A unit with candidates and ragged histories, as tests of real programs use it."""

from __future__ import annotations

import torch

import din_kernels as dk


def problem(users=64, dim=64, dtype=torch.float32, device="cuda", **options):
    """A unit, candidates and a packed history of lengths 0 .. 199 on `device`."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 200, (users,), generator=generator)
    values = torch.randn(int(lengths.sum()), dim, generator=generator).to(device, dtype).requires_grad_()
    query = torch.randn(users, dim, generator=generator).to(device, dtype).requires_grad_()
    unit = dk.nn.LocalActivationUnit(dim, **options).to(device, dtype)
    return unit, query, dk.Jagged(values, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device))


def gradients(pooled, unit, query, history):
    return torch.autograd.grad(pooled.float().square().sum(), [query, history.values, *unit.parameters()])


def assert_same(found, expected, **tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)
