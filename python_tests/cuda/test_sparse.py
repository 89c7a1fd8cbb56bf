"""mba_penalty and sparse_update on backend `cuda`: the reference's values, rows that stay, determinism, sizes."""

import pytest
import torch
from support.cuda_backend import KINDS, device_of

import din_kernels as dk
from din_kernels.backends import cuda
from din_kernels.ops.sparse_update import RULES, Hyper, Table, sparse_update

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# rows, width, entries: widths that are read four at a time and not; groups longer than one chunk of 64; more rows than
# one tile of the scan (32,768); many entries of few rows.
SHAPES = ((50, 64, 400), (7, 19, 300), (70_000, 4, 33), (5, 132, 200), (1, 1, 1))
# Twice the roundings of a result, relative to its largest entry.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture(params=KINDS)
def device(request, monkeypatch):
    return device_of(request.param, monkeypatch)


def table(rule, dtype, shape, device, **hyper):
    rows, dim, entries = shape
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, dim, generator=generator).to(device, dtype)
    states = [torch.rand((rows, dim) if s == "VD" else (rows,), generator=generator).to(device) for s in RULES[rule]]
    ids = torch.randint(0, rows, (entries,), generator=generator)
    ids[: entries // 3] = rows - 1
    grads = torch.randn(entries, dim, generator=generator).to(device, dtype)
    counts = torch.randint(0, 9, (rows,), generator=generator).to(device)
    return Table(weight, states, ids.to(device), grads, Hyper(0.1, 0.1, 0.9, 0.99, 1e-8, 0.3, **hyper), counts, 0)


def updated(backend, rule, *arguments, **hyper):
    given = table(rule, *arguments, **hyper)
    with dk.use_backend(backend):
        sparse_update([given], rule)
    return [given.weight, *given.states]


def relative_error(ours, expected):
    return ((ours.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_update_equals_the_reference(rule, dtype, device):
    for shape in SHAPES:
        ours, expected = (updated(backend, rule, dtype, shape, device) for backend in ("cuda", "reference"))
        for mine, theirs in zip(ours, expected, strict=True):
            assert relative_error(mine, theirs) <= TOLERANCE[dtype], shape


@pytest.mark.parametrize("hyper", [{"maximize": True}, {"decoupled": True}], ids=str)
def test_maximized_and_decoupled_updates_equal_the_reference(hyper, device):
    ours, expected = (
        updated(backend, "adam", torch.float32, SHAPES[0], device, **hyper) for backend in ("cuda", "reference")
    )
    assert all(relative_error(*pair) <= TOLERANCE[torch.float32] for pair in zip(ours, expected, strict=True))


def test_padding_row_and_rows_that_no_id_names_keep_their_bits(device):
    given = table("adagrad", torch.float32, (40, 8, 30), device)
    before = [tensor.clone() for tensor in (given.weight, *given.states)]
    with dk.use_backend("cuda"):
        sparse_update([given], "adagrad")
    stays = torch.ones(40, dtype=torch.bool, device=device)
    stays[given.ids] = False
    stays[0] = True
    for now, then in zip((given.weight, *given.states), before, strict=True):
        assert torch.equal(now[stays], then[stays])
        assert not torch.equal(now[~stays], then[~stays])


def test_int32_ids_and_counts_of_any_type_give_the_same_bits(device):
    results = []
    for ids, counts in ((torch.int64, torch.int64), (torch.int32, torch.int32), (torch.int64, torch.float64)):
        given = table("sgd", torch.float32, (9, 8, 5), device)
        with dk.use_backend("cuda"):
            sparse_update([given._replace(ids=given.ids.to(ids), counts=given.counts.to(counts))], "sgd")
        results.append(given.weight)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_deterministic_update_does_not_depend_on_the_order_of_blocks(monkeypatch):
    device = device_of("emulated", monkeypatch)
    results = []
    for reverse in (False, True):
        cuda.compiled().set_device(reverse_blocks=reverse)
        torch.use_deterministic_algorithms(True)
        try:
            results.append(updated("cuda", "adagrad", torch.float32, (7, 8, 900), device))
        finally:
            torch.use_deterministic_algorithms(False)
            cuda.compiled().set_device()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_penalty_and_its_gradient_equal_the_reference(dtype, sparse, device):
    for rows, dim, entries in (*SHAPES, (6, 3, 0)):
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(rows, dim, generator=generator).to(device, dtype).requires_grad_()
        ids = torch.randint(0, rows, (entries,), generator=generator, dtype=torch.int32).to(device)
        counts = torch.randint(0, 5, (rows,), generator=generator).to(device)
        found = []
        for backend in ("cuda", "reference"):
            with dk.use_backend(backend):
                penalty = dk.mba_penalty(weight, ids, counts, 0.3, padding_idx=0, sparse=sparse)
            (grad,) = torch.autograd.grad(penalty * 2, weight)
            assert grad.is_sparse == sparse
            found.append((penalty.detach(), grad.to_dense()))
        for ours, expected in zip(*found, strict=True):
            assert torch.allclose(ours.double(), expected.double(), rtol=TOLERANCE[dtype], atol=0), (rows, dim, entries)


def test_unique_ids_come_in_ascending_order_with_minus_one_behind_them(device):
    ids = torch.tensor([9, 2, 70_001, 2, 0, 9, 33], device=device)
    weight, counts = torch.ones(70_002, 2, device=device), torch.ones(70_002, device=device)
    _, unique, count = torch.ops.din_kernels.mba_penalty(weight, ids, counts, 1.0, 0, True, "cuda")
    assert count.item() == 4
    assert unique.tolist() == [2, 9, 33, 70_001, -1, -1, -1]


def test_workspace_grows_with_the_bitmap_and_stays_in_64_bits(monkeypatch):
    device_of("emulated", monkeypatch)
    kernels = cuda.compiled()
    rows, entries, dim = 2**31 - 1, 2**31 - 1, 1024
    assert kernels.mba_penalty_workspace(rows, 1) < rows / 4 + 2**21
    assert kernels.sparse_update_workspace(rows, dim, entries) > 2 * entries / 64 * dim * 4
    assert kernels.sparse_update_workspace(1, 1, 1) > 0


@pytest.mark.parametrize("name", ["rows", "entries"])
def test_more_than_31_bits_of_rows_or_entries_are_refused_with_the_limit(name, monkeypatch):
    device_of("emulated", monkeypatch)
    request = dk.backends.Request("sparse_update", "cpu", torch.float32, {name: 2**31})
    assert dk.backends.refuses("cuda", request) == f"{name} must be below 2^31, got 2147483648"
