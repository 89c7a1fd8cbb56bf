"""dice on backend `cuda`: the reference's values and gradients, statistics of hard inputs, determinism."""

import itertools

import pytest
import torch
from support.cuda_backend import KINDS, device_of

import din_kernels as dk
from din_kernels.backends import cuda
from din_kernels.verification import FLOOR

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Not 2 rows: their gradient through the statistics is 0, and 1 / sqrt(var + eps) scales what rounding leaves of it.
SHAPES = ((1, 1), (137, 19), (700, 80), (33, 7), (64, 130), (5, 260))


@pytest.fixture(params=KINDS)
def device(request, monkeypatch):
    return device_of(request.param, monkeypatch)


def results(backend, dtype, shape, training, masked, affine, device="cpu", parameters=torch.float32):
    """Output, statistics and all gradients by name, in float64; inputs are rounded to dtype and fp32 first."""
    rows, channels = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    # Every channel has a mean and scale of its own.
    x = (normal(rows, channels) * normal(channels).exp() + normal(channels)).to(dtype)
    given = {"alpha": normal(channels)} | ({"weight": normal(channels), "bias": normal(channels)} if affine else {})
    leaves = {"x": x.to(device), **{name: value.float().to(device, parameters) for name, value in given.items()}}
    if parameters == torch.float64:
        leaves["x"] = leaves["x"].double()
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    mean, var = normal(channels).float().to(device), normal(channels).square().add(0.1).float().to(device)
    mask = (torch.rand(rows, generator=generator) < 0.6).to(device) if masked else None
    with dk.use_backend(backend):
        y, mean, var, count = dk.dice(
            **leaves, mean=mean.to(parameters), var=var.to(parameters), training=training, mask=mask
        )
    grads = torch.autograd.grad(y, list(leaves.values()), normal(rows, channels).to(dtype).to(y))
    found = {"y": y, "mean": mean, "var": var, "count": count}
    found |= {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {name: value.detach().cpu().double() for name, value in found.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_statistics_and_gradients_equal_the_reference(dtype, training, device):
    for shape, masked, affine in itertools.product(SHAPES, (False, True), (False, True)):
        options = (dtype, shape, training, masked, affine)
        ours, own = results("cuda", *options, device), results("reference", *options)
        exact = results("reference", *options, parameters=torch.float64)
        # Sums over the rows cancel: their floor counts from the largest gradient of all.
        largest = max(value.abs().max().item() for name, value in exact.items() if name.startswith("grad"))
        for name, right in exact.items():
            size = largest if name.startswith("grad") else right.abs().max().item()
            floor = FLOOR[dtype if name in ("y", "grad x") else torch.float32]
            bound = 2 * (own[name] - right).abs().max().item() + floor * size
            assert (ours[name] - right).abs().max().item() <= bound, (name, options)


def test_variance_of_a_channel_far_from_zero_is_not_lost(device):
    x = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 1000.0])
    with dk.use_backend("cuda"):
        _, mean, var, count = dk.dice(x.to(device), torch.zeros(2, device=device), training=True)
    exact = x.double()
    assert count.item() == 5000
    assert torch.allclose(mean.cpu().double(), exact.mean(0), rtol=1e-6, atol=1e-5)
    assert torch.allclose(var.cpu().double(), exact.var(0, unbiased=False), rtol=1e-4)


@pytest.mark.parametrize("rows", [0, 1])
def test_none_and_one_valid_row_are_defined(rows, device):
    x = torch.full((3, 2), 5.0, device=device)
    mask = torch.arange(3, device=device) < rows
    with dk.use_backend("cuda"):
        y, mean, var, count = dk.dice(x, torch.zeros(2, device=device), training=True, mask=mask)
    assert count.item() == rows
    assert mean.tolist() == [5.0 * rows] * 2 and var.tolist() == [1.0 - rows] * 2
    assert (y[rows:] == 0).all() and y.isfinite().all()


def test_sums_do_not_depend_on_the_order_of_blocks(monkeypatch):
    device_of("emulated", monkeypatch)
    found = []
    for reverse in (False, True):
        cuda.compiled().set_device(reverse_blocks=reverse)
        try:
            found.append(results("cuda", torch.float32, (700, 80), True, True, True))
        finally:
            cuda.compiled().set_device()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_workspace_stays_in_64_bits(monkeypatch):
    device_of("emulated", monkeypatch)
    assert cuda.compiled().dice_workspace(2**31 - 1, 2**20) > 512 * 3 * 2**20 * 4
