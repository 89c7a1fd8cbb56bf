"""Claims about the sparse optimizers, mini-batch aware regularization inside them, and its counts."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict

import din_kernels as dk
from din_kernels import MBA, MBACounts, data, optim
from din_kernels.optim import SparseAdagrad, SparseAdam, SparseRowWiseAdagrad, SparseSGD

ROWS, DIM = 50, 19
KINDS = (SparseSGD, SparseAdagrad, SparseRowWiseAdagrad, SparseAdam)


def embedding(dtype=torch.float64, seed=0, dim=DIM, rows=ROWS) -> nn.Embedding:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(dtype)
    return nn.Embedding.from_pretrained(weight, freeze=False, sparse=True)


def batch(step: int, size: int = 80) -> torch.Tensor:
    return torch.randint(0, ROWS - 5, (2, size // 2), generator=torch.Generator().manual_seed(100 + step))


def loss_of(table: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    """Two uses of the table in one step, duplicates within and across."""
    return table(ids).square().sum() / 10 + table(ids[0].flip(0)).sin().sum()


def run(table, optimizer, steps=range(5), scheduler=None) -> torch.Tensor:
    for step in steps:
        optimizer.zero_grad()
        loss_of(table, batch(step)).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return table.weight.detach().clone()


def counts(seed=3) -> torch.Tensor:
    return torch.randint(0, 9, (ROWS,), generator=torch.Generator().manual_seed(seed))


# --- without regularization: equal to the known optimizers -----------------------------------------------------------

PEERS = [
    (SparseSGD, torch.optim.SGD, {"lr": 0.1}),
    (SparseSGD, torch.optim.SGD, {"lr": 0.1, "maximize": True}),
    (SparseAdagrad, torch.optim.Adagrad, {"lr": 0.1}),
    (SparseAdagrad, torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.3, "eps": 1e-3}),
    (SparseAdagrad, torch.optim.Adagrad, {"lr": 0.1, "maximize": True}),
    (SparseAdam, torch.optim.SparseAdam, {"lr": 0.1}),
    (SparseAdam, torch.optim.SparseAdam, {"lr": 0.1, "betas": (0.7, 0.9), "eps": 1e-3, "maximize": True}),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("ours", "theirs", "settings"), PEERS)
def test_equals_torchs_optimizer(ours, theirs, settings, dtype, tolerance):
    a, b = embedding(dtype), embedding(dtype)
    got, expected = run(a, ours(a.parameters(), **settings)), run(b, theirs(b.parameters(), **settings))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_rowwise_adagrad_equals_fbgemms_formula():
    """EXACT_ROWWISE_ADAGRAD: one accumulator per row of the mean squared gradient; eps added to its root."""
    table = embedding()
    weight, state = table.weight.detach().clone(), torch.zeros(ROWS, dtype=torch.float64)
    got = run(table, SparseRowWiseAdagrad(table.parameters(), lr=0.1, eps=1e-3))
    for step in range(5):
        leaf = weight.clone().requires_grad_()
        loss_of(lambda ids, leaf=leaf: leaf[ids], batch(step)).backward()
        for j in range(ROWS):
            state[j] += leaf.grad[j].square().mean()
            weight[j] -= 0.1 * leaf.grad[j] / (state[j].sqrt() + 1e-3)
    torch.testing.assert_close(got, weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_equals_torchs_where_every_step_holds_every_row(nesterov):
    table = embedding()
    dense = table.weight.detach().clone().requires_grad_()
    ours = SparseSGD(table.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov)
    theirs = torch.optim.SGD([dense], lr=0.1, momentum=0.9, nesterov=nesterov)
    for step in range(5):
        ids = torch.cat([torch.arange(ROWS), batch(step).flatten()])
        for weights, optimizer in ((table, ours), (lambda i: dense[i], theirs)):
            optimizer.zero_grad()
            weights(ids).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(table.weight, dense, rtol=1e-12, atol=1e-12)


def test_schedulers_set_the_learning_rate():
    a, b = embedding(), embedding()
    ours, theirs = SparseAdagrad(a.parameters(), lr=0.1), torch.optim.Adagrad(b.parameters(), lr=0.1)
    schedulers = [torch.optim.lr_scheduler.StepLR(each, step_size=2, gamma=0.1) for each in (ours, theirs)]
    got, expected = run(a, ours, scheduler=schedulers[0]), run(b, theirs, scheduler=schedulers[1])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_groups_have_settings_of_their_own():
    tables = [embedding(seed=seed) for seed in range(3)]
    settings = [{"lr": 0.1}, {"lr": 0.01, "momentum": 0.9}, {"lr": 0.1, "mba": MBA(0.3, counts())}]
    expected = []
    for table, group in zip(tables, settings, strict=True):
        single = copy.deepcopy(table)
        expected.append(run(single, SparseSGD([{"params": [single.weight]} | group])))
    groups = [{"params": [table.weight]} | group for table, group in zip(tables, settings, strict=True)]
    together = SparseSGD(groups)
    for step in range(5):
        together.zero_grad()
        sum(loss_of(table, batch(step)) for table in tables).backward()
        together.step()
    for table, right in zip(tables, expected, strict=True):
        assert torch.equal(table.weight, right)


def test_several_tables_of_a_group_are_updated_as_one_by_one():
    tables = [embedding(seed=seed, dim=dim) for seed, dim in enumerate((4, 8))]
    expected = []
    for table in tables:
        single = copy.deepcopy(table)
        expected.append(run(single, SparseAdam(single.parameters(), lr=0.1)))
    optimizer = SparseAdam([table.weight for table in tables], lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        sum(loss_of(table, batch(step)) for table in tables).backward()
        optimizer.step()
    for table, right in zip(tables, expected, strict=True):
        assert torch.equal(table.weight, right)


def test_a_table_without_gradient_is_left_alone():
    used, unused = embedding(), embedding(seed=1)
    before = unused.weight.detach().clone()
    optimizer = SparseAdagrad([used.weight, unused.weight])
    loss_of(used, batch(0)).backward()
    optimizer.step()
    state = optimizer.state[unused.weight]
    assert torch.equal(unused.weight, before) and state["step"] == 0 and not state["sum"].any()


def test_closure_is_evaluated_with_gradients():
    table = embedding()
    optimizer = SparseSGD(table.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(table, batch(0))
        loss.backward()
        return loss

    before = table.weight.detach().clone()
    assert optimizer.step(closure).item() == pytest.approx(loss_of(lambda ids: before[ids], batch(0)).item())
    assert (table.weight != before).any()


# --- what is refused -------------------------------------------------------------------------------------------------


def two_tables_one_step(spoil):
    """A step on two tables of different rules, the second of which `spoil` has changed."""
    good, bad = embedding(), embedding(seed=1)
    optimizer = SparseSGD([{"params": [good.weight]}, {"params": [bad.weight], "momentum": 0.9}])
    (loss_of(good, batch(0)) + loss_of(bad, batch(0))).backward()
    spoil(bad.weight)
    return optimizer, [(table.weight, table.weight.detach().clone()) for table in (good, bad)]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda w: setattr(w, "grad", w.grad.to_dense()), TypeError, r"got a dense one of shape \[50, 19\]"),
        (lambda w: w.grad._indices().__setitem__((0, 0), ROWS), IndexError, "must lie in 0..49 .* got 0..50"),
        (lambda w: w.grad._indices().__setitem__((0, 0), -1), IndexError, "got -1"),
        (lambda w: setattr(w, "grad", w.grad.to_dense().to_sparse()), ValueError, "1 sparse and 1 dense dimension"),
    ],
)
def test_a_bad_gradient_is_refused_before_anything_is_written(spoil, error, message):
    optimizer, tables = two_tables_one_step(spoil)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert all(torch.equal(weight, before) for weight, before in tables)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: SparseSGD(p, lr=-1.0), ValueError, "lr must be at least 0, got -1.0"),
        (lambda p: SparseSGD(p, nesterov=True), ValueError, "nesterov needs a momentum above 0"),
        (lambda p: SparseSGD(p, momentum=-0.5), ValueError, "momentum must be at least 0, got -0.5"),
        (lambda p: SparseAdagrad(p, eps=-1.0), ValueError, "eps must be at least 0, got -1.0"),
        (lambda p: SparseAdagrad(p, initial_accumulator_value=-1), ValueError, "initial_accumulator_value must be"),
        (lambda p: SparseAdam(p, betas=(0.9, 1.0)), ValueError, r"betas\[1\] must lie in \[0, 1\), got 1.0"),
        (lambda p: SparseAdam(p, betas=(0.9, 0.99, 0.999)), ValueError, r"betas must be two numbers, got \(0.9, 0.99"),
        (lambda p: SparseAdam(p, betas=0.9), ValueError, "betas must be two numbers, got 0.9"),
        (lambda p: SparseAdam(p, betas=(0.9, "1")), TypeError, r"betas\[1\] must be a number, got str"),
        (lambda p: SparseAdagrad(p, lr_decay=-1), ValueError, "lr_decay must be at least 0, got -1"),
        (lambda p: SparseAdagrad(p, eps=float("nan")), ValueError, "eps must be at least 0, got nan"),
        (lambda p: SparseSGD(p, lr=float("inf")), ValueError, "lr must be finite, got inf"),
        (lambda p: SparseSGD(p, lr=None), TypeError, "lr must be a number, got NoneType"),
        (lambda p: SparseSGD(p, lr=torch.ones(2)), TypeError, "lr must be a number, got Tensor"),
        (lambda p: SparseSGD([{"params": list(p), "lr": -2}], lr=0.1), ValueError, "lr must be at least 0, got -2"),
        (lambda p: SparseSGD(p, nesterov=1, momentum=0.9), TypeError, "nesterov must be a bool, got int"),
        (lambda p: SparseSGD(p, maximize="no"), TypeError, "maximize must be a bool, got str"),
        (lambda p: SparseRowWiseAdagrad(p, initial_accumulator_value=1j), TypeError, "initial_accumulator_value"),
        (lambda p: SparseAdagrad(p, mba=0.1), TypeError, "mba must be a din_kernels.MBA or None, got float"),
        (lambda p: SparseAdagrad(p, mba=MBA(0.1, torch.ones(3))), ValueError, "counts for the 50 rows .* got 3"),
        (lambda p: SparseAdagrad([torch.ones(3)]), ValueError, r"params must have shape \[V, D\]"),
        (lambda p: MBA(-0.1, torch.ones(3)), ValueError, "coeff must be at least 0, got -0.1"),
        (lambda p: MBA(0.1, torch.ones(3), padding_idx=3), IndexError, "padding_idx must lie in 0..2 .* got 3"),
        (lambda p: MBA(float("nan"), torch.ones(3)), ValueError, "coeff must be at least 0, got nan"),
        (lambda p: MBA("0.1", torch.ones(3)), TypeError, "coeff must be a number, got str"),
        (lambda p: MBA(0.1, torch.ones(3), padding_idx=0.5), TypeError, "padding_idx must be an integer, got float"),
        (lambda p: MBA(0.1, torch.ones(3), decoupled="no"), TypeError, "decoupled must be a bool, got str"),
        (lambda p: MBACounts.zeros(-1), ValueError, "rows must be at least 0, got -1"),
        (lambda p: MBACounts(torch.tensor([1, torch.nan])), ValueError, "counts must be at least 0, got nan"),
        (lambda p: MBACounts(torch.tensor([1, torch.inf])), ValueError, "counts must be finite, got inf"),
        (lambda p: MBACounts(torch.ones(3) + 0j), TypeError, "counts must be integers, float32 or float64"),
        (lambda p: MBACounts(torch.tensor([1, -1])), ValueError, "counts must be at least 0, got -1"),
        (lambda p: MBACounts(torch.ones(3).half()), TypeError, "counts must be integers, float32 or float64"),
        (lambda p: MBACounts(torch.ones(3), "users"), ValueError, "count must be one of 'samples', 'occurrences'"),
    ],
)
def test_wrong_setting_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make(embedding().parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_group_is_not_added(kind):
    optimizer = kind(embedding().parameters(), lr=0.1)
    other = embedding()
    with pytest.raises(ValueError, match="lr must be at least 0, got -1"):
        optimizer.add_param_group({"params": [other.weight], "lr": -1})
    assert len(optimizer.param_groups) == 1 and other.weight not in optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1.0,), ValueError, "max_norm must be at least 0, got -1.0"),
        (("1",), TypeError, "max_norm must be a number, got str"),
        ((1.0, float("nan")), ValueError, "norm_type must be at least 0, got nan"),
        ((1.0, "2"), TypeError, "norm_type must be a number, got str"),
        ((1.0, 2.0, "yes"), TypeError, "error_if_nonfinite must be a bool, got str"),
    ],
)
def test_clipping_names_a_wrong_number(arguments, error, message):
    table = embedding()
    loss_of(table, batch(0)).backward()
    before = table.weight.grad.clone()
    with pytest.raises(error, match=message):
        optim.clip_grad_norm_(table.weight, *arguments)
    assert torch.equal(table.weight.grad.to_dense(), before.to_dense())
    with pytest.raises(TypeError, match=r"parameters\[1\] must be a torch.Tensor, got str"):
        optim.clip_grad_norm_([table.weight, "w"], 1.0)


def test_an_infinite_max_norm_measures_alone():
    table = embedding()
    loss_of(table, batch(0)).backward()
    expected = table.weight.grad.to_dense()
    for norm_type in (1.0, "inf", float("inf")):
        norm = optim.clip_grad_norm_(table.weight, float("inf"), norm_type)
        torch.testing.assert_close(norm, torch.linalg.vector_norm(expected, float(norm_type)))
    torch.testing.assert_close(table.weight.grad.to_dense(), expected)


# --- mini-batch aware regularization ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_mba_adds_the_papers_term_once_per_id_of_the_batch(kind):
    """Equal to the same optimizer given a gradient with lambda w_j / n_j added by hand on the unique ids."""
    a, b = embedding(), embedding()
    n = counts()
    ours = kind([{"params": [a.weight], "mba": MBA(0.3, n, padding_idx=7)}], lr=0.1)
    by_hand = kind(b.parameters(), lr=0.1)
    for step in range(4):
        ids = batch(step)
        for table, optimizer in ((a, ours), (b, by_hand)):
            optimizer.zero_grad()
            loss_of(table, ids).backward()
        dense = b.weight.grad.to_dense()
        j = torch.tensor(sorted(set(ids.flatten().tolist()) - {7}))
        rows = dense[j] + 0.3 * b.weight.detach()[j] / n[j].clamp(min=1)[:, None]
        b.weight.grad = torch.sparse_coo_tensor(j[None], rows, b.weight.shape, check_invariants=False)
        for optimizer in (ours, by_hand):
            optimizer.step()
    torch.testing.assert_close(a.weight, b.weight, rtol=1e-12, atol=1e-12)
    absent = sorted(set(range(ROWS)) - set(torch.cat([batch(step).flatten() for step in range(4)]).tolist()) | {7})
    assert torch.equal(a.weight[absent], embedding().weight[absent])


def test_decoupled_decay_is_not_scaled_by_the_adaptive_step():
    table, ids = embedding(), torch.tensor([[1, 1], [2, 3]])
    before = table.weight.detach().clone()
    optimizer = SparseAdagrad([{"params": [table.weight], "mba": MBA(0.5, counts(), decoupled=True)}], lr=0.1)
    (0 * table(ids)).sum().backward()  # no gradient: the decay alone moves the rows
    optimizer.step()
    expected = before.clone()
    for j in (1, 2, 3):
        expected[j] -= 0.1 * 0.5 / max(int(counts()[j]), 1) * before[j]
    torch.testing.assert_close(table.weight.detach(), expected, rtol=1e-14, atol=0)


def test_for_sgd_decoupled_and_coupled_decay_are_one():
    results = []
    for decoupled in (False, True):
        table = embedding()
        results.append(run(table, SparseSGD(table.parameters(), lr=0.1, mba=MBA(0.3, counts(), decoupled=decoupled))))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_gradient_accumulation_regularizes_once_a_step():
    a, b = embedding(), embedding()
    accumulated, whole = (SparseAdagrad(t.parameters(), lr=0.1, mba=MBA(0.3, counts())) for t in (a, b))
    for part in batch(0):
        a(part).square().sum().backward()
    b(batch(0)).square().sum().backward()
    accumulated.step()
    whole.step()
    torch.testing.assert_close(a.weight, b.weight, rtol=1e-12, atol=1e-12)


# --- state, precision, clipping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_training_goes_on_bit_for_bit(kind, dtype):
    def make(table):
        return kind([{"params": [table.weight], "mba": MBA(0.3, counts(), padding_idx=0)}], lr=0.1)

    table = embedding(dtype)
    optimizer = make(table)
    run(table, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"table": table.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = run(table, optimizer, range(3, 6))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = embedding(dtype, seed=9)
    other.load_state_dict(saved["table"])
    resumed = make(other)
    resumed.param_groups[0]["mba"].counts.values.zero_()
    resumed.load_state_dict(saved["optimizer"])
    assert torch.equal(run(other, resumed, range(3, 6)), expected)
    if kind is not SparseSGD:
        assert resumed.state[other.weight]["sum" if kind is not SparseAdam else "exp_avg"].dtype == torch.promote_types(
            dtype, torch.float32
        )


def test_loaded_state_makes_the_mba_that_the_new_optimizer_lacks():
    a, b = embedding(), embedding()
    saved = SparseSGD(a.parameters(), mba=MBA(0.3, MBACounts(counts(), "occurrences"), 2, decoupled=True)).state_dict()
    optimizer = SparseSGD(b.parameters())
    optimizer.load_state_dict(saved)
    mba = optimizer.param_groups[0]["mba"]
    assert (mba.coeff, mba.padding_idx, mba.decoupled, mba.counts.count) == (0.3, 2, True, "occurrences")
    assert torch.equal(mba.counts.values, counts())
    optimizer.load_state_dict(SparseSGD(a.parameters()).state_dict())
    assert optimizer.param_groups[0]["mba"] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_tables_keep_wide_states_and_lose_only_the_rounding_of_each_step(dtype):
    narrow = embedding(dtype)
    wide = nn.Embedding.from_pretrained(narrow.weight.detach().float(), freeze=False, sparse=True)
    optimizers = [SparseAdagrad(t.parameters(), lr=0.1, mba=MBA(0.3, counts())) for t in (narrow, wide)]
    for table, optimizer in zip((narrow, wide), optimizers, strict=True):
        for step in range(5):  # one use of the table: torch cannot add fp16 sparse gradients on a CPU
            optimizer.zero_grad()
            (table(batch(step)).float().square().sum() / 10).backward()
            optimizer.step()
    assert optimizers[0].state[narrow.weight]["sum"].dtype == torch.float32
    error = (narrow.weight.float() - wide.weight).abs().max() / wide.weight.abs().max()
    assert error < 8 * torch.finfo(dtype).eps


def test_grad_scaler_unscales_sparse_gradients_and_skips_overflows():
    scaled, plain = embedding(torch.float32), embedding(torch.float32)
    optimizers = [SparseAdagrad(t.parameters(), lr=0.1, mba=MBA(0.3, counts())) for t in (scaled, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(scaled, batch(0))).backward()
    scaler.step(optimizers[0])
    scaler.update()
    loss_of(plain, batch(0)).backward()
    optimizers[1].step()
    torch.testing.assert_close(scaled.weight, plain.weight)
    before = scaled.weight.detach().clone()
    optimizers[0].zero_grad()
    scaler.scale(loss_of(scaled, batch(1)) * torch.inf).backward()
    scaler.step(optimizers[0])
    scaler.update()
    assert torch.equal(scaled.weight, before)
    assert scaler.get_scale() == 512.0


def test_clipping_takes_the_norm_of_summed_duplicates_and_works_beside_dense_gradients():
    sparse, layer = embedding(), nn.Linear(DIM, 1).double()
    dense = nn.Embedding.from_pretrained(sparse.weight.detach().clone(), freeze=False)
    norms, clipped = [], []
    for table, clip in ((sparse, optim.clip_grad_norm_), (dense, nn.utils.clip_grad_norm_)):
        layer.zero_grad()
        layer(table(batch(0))).square().sum().backward()
        norms.append(clip([table.weight, *layer.parameters()], 0.5))
        clipped.append([table.weight.grad.to_dense(), layer.weight.grad.clone()])
    torch.testing.assert_close(*norms, rtol=1e-12, atol=0)
    torch.testing.assert_close(*clipped, rtol=1e-12, atol=1e-15)
    SparseSGD(sparse.parameters()).step()
    sparse.weight.grad._values()[0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        optim.clip_grad_norm_(sparse.weight, 0.5, error_if_nonfinite=True)


@pytest.mark.parametrize("kind", KINDS)
def test_distributed_checkpoints_take_a_fresh_optimizer_and_restore_a_used_one(kind):
    def make():
        table = embedding()
        return table, kind([{"params": [table.weight], "mba": MBA(0.3, counts(), padding_idx=0)}], lr=0.1)

    table, optimizer = make()
    fresh = get_optimizer_state_dict(table, optimizer)
    assert optimizer.param_groups[0]["lr"] == fresh["param_groups"][0]["lr"] == 0.1
    assert torch.equal(table.weight, embedding().weight) and table.weight.grad is None
    run(table, optimizer, range(3))
    model_state, optimizer_state = copy.deepcopy(get_state_dict(table, optimizer))
    expected = run(table, optimizer, range(3, 6))
    other, resumed = make()
    resumed.param_groups[0]["mba"].counts.values.zero_()
    set_state_dict(other, resumed, model_state_dict=model_state, optim_state_dict=optimizer_state)
    assert resumed.param_groups[0]["lr"] == 0.1
    assert torch.equal(run(other, resumed, range(3, 6)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_step_leaves_learning_rate_and_step_counts_alone(kind):
    table = embedding()
    optimizer = kind(table.parameters(), lr=0.1)
    table.weight.grad = torch.zeros_like(table.weight)
    with pytest.raises(TypeError, match="must be sparse"):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1 and optimizer.state[table.weight]["step"] == 0


@pytest.mark.parametrize("moved", ["before the first step", "after two steps"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_follow_their_table_to_another_dtype(kind, moved):
    """A table that is moved after its optimizer was made goes on as the same training in the new dtype."""
    steps = range(2) if moved == "after two steps" else range(0)
    settings = {"lr": 0.1} | ({"momentum": 0.9} if kind is SparseSGD else {})
    table = embedding(torch.float32)
    optimizer = kind(table.parameters(), **settings)
    run(table, optimizer, steps)
    other = embedding(torch.float64)
    expected = kind(other.parameters(), **settings)
    other.weight.data.copy_(table.weight.data)
    for name, value in optimizer.state[table.weight].items():
        expected.state[other.weight][name] = value.double() if torch.is_tensor(value) else value
    table.double()
    assert torch.equal(run(table, optimizer, range(2, 4)), run(other, expected, range(2, 4)))
    states = [value for value in optimizer.state[table.weight].values() if torch.is_tensor(value)]
    assert states and all(state.dtype == torch.float64 for state in states)


def test_states_follow_their_table_to_another_device():
    table = embedding(torch.float32)
    optimizer = SparseAdam(table.parameters(), lr=0.1)
    table.to("meta")
    group = optimizer.param_groups[0]
    assert all(state.is_meta for state in optimizer._states(group, table.weight, "adam"))


# --- counts ----------------------------------------------------------------------------------------------------------

SAMPLES = [[1, 1, 3], [3], [], [3, 0, 1]]


def jagged(samples=SAMPLES) -> dk.Jagged:
    values = torch.tensor([i for sample in samples for i in sample], dtype=torch.int64)
    return dk.Jagged.from_lengths(values, torch.tensor([len(sample) for sample in samples]))


@pytest.mark.parametrize(("count", "expected"), [("samples", [1, 2, 0, 3, 0]), ("occurrences", [1, 3, 0, 3, 0])])
def test_counts_stream_over_samples(count, expected):
    whole = MBACounts.from_samples([jagged()], 5, count)
    streamed = MBACounts.from_samples((jagged(part) for part in (SAMPLES[:1], SAMPLES[1:3], SAMPLES[3:])), 5, count)
    packed = MBACounts.zeros(5, count)
    packed.observe(jagged().values.int(), jagged().offsets)
    assert whole.values.tolist() == streamed.values.tolist() == packed.values.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.float32])
def test_counts_do_not_wrap_around_or_stop_growing_whatever_type_comes_in(dtype):
    limit = 2**24 if dtype == torch.float32 else torch.iinfo(dtype).max
    made = MBACounts(torch.tensor([0, limit]).to(dtype), "occurrences")
    for _ in range(3):
        made.observe(torch.tensor([[1, 1], [0, 1]]))
    assert made.values.tolist() == [3, limit + 9]
    assert made.values.dtype == (torch.float64 if dtype == torch.float32 else torch.int64)


def test_a_float32_counter_passes_2_to_the_24_one_by_one():
    made = MBACounts(torch.full((2,), 2.0**24))
    for _ in range(5):
        made.observe(torch.tensor([1]))
    assert made.values.tolist() == [2**24, 2**24 + 5]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_wide_counts_are_updated_in_place(dtype):
    values = torch.zeros(3, dtype=dtype)
    MBACounts(values).observe(torch.tensor([2, 2]))
    assert values.tolist() == [0, 0, 2]


@pytest.mark.parametrize("bad", [-4.0, torch.nan, torch.inf])
def test_a_step_with_a_count_that_became_wrong_is_refused_before_it_writes(bad):
    table = embedding()
    n = counts().double()
    optimizer = SparseAdagrad(table.parameters(), lr=0.1, mba=MBA(0.3, n))
    run(table, optimizer, range(1))
    before = table.weight.detach().clone()
    n[3] = bad
    with pytest.raises(ValueError, match="counts must be"):
        run(table, optimizer, range(1, 2))
    assert torch.equal(table.weight, before)
    n[3] = 2
    run(table, optimizer, range(1, 2))
    assert (table.weight != before).any()


def test_fractional_counts_are_not_loaded_into_whole_ones():
    made = MBACounts.zeros(2)
    made.load_state_dict({"values": torch.tensor([1.0, 2.0]), "count": "samples"})
    assert made.values.tolist() == [1, 2]
    with pytest.raises(ValueError, match="counts must be whole numbers"):
        made.load_state_dict({"values": torch.tensor([1.0, 2.5]), "count": "samples"})
    with pytest.raises(ValueError, match="counts must be at least 0, got -1"):
        made.load_state_dict({"values": torch.tensor([1, -1]), "count": "samples"})
    assert made.values.tolist() == [1, 2]


def test_fields_that_share_a_table_count_a_sample_once():
    made = MBACounts.zeros(5)
    made.observe([jagged(), torch.tensor([1, 2, 2, 2])])  # history and candidate of four samples
    assert made.values.tolist() == [1, 2, 3, 3, 0]
    made.observe(torch.tensor([[4, 4], [4, 0]]))
    assert made.values.tolist() == [2, 2, 3, 3, 2]


def test_counts_of_batches_equal_counts_of_the_data():
    made = data.generate(seed=0, users=60)
    samples, per_row = made.split.train, made.split.train.candidates.shape[1]
    for count in ("samples", "occurrences"):
        found = MBACounts.zeros(made.interactions.n_items, count)
        for each in data.batches(samples, made.interactions, 32):
            history = dk.Jagged(each.history_items, each.offsets)
            for candidate in each.candidate_items.view(-1, per_row).unbind(1):
                found.observe([history, candidate])
        expected = data.item_counts(samples, made.interactions, count=count)
        np.testing.assert_array_equal(found.values.numpy(), expected)


def test_online_counts_are_those_of_the_step():
    """observe before the step: a batch is a sample of its own ids."""
    online, static = embedding(), embedding()
    mba = MBA(0.3, MBACounts.zeros(ROWS))
    ids = batch(0)
    ours = SparseSGD(online.parameters(), lr=0.1, mba=mba)
    theirs = SparseSGD(static.parameters(), lr=0.1, mba=MBA(0.3, MBACounts.from_samples([ids], ROWS)))
    mba.observe(ids)
    for table, optimizer in ((online, ours), (static, theirs)):
        loss_of(table, ids).backward()
        optimizer.step()
    assert torch.equal(online.weight, static.weight)


def test_counts_are_saved_and_loaded_in_place():
    made, other = MBACounts.from_samples([jagged()], 5), MBACounts.zeros(5)
    values = other.values
    other.load_state_dict(made.state_dict())
    assert other.values is values and values.tolist() == made.values.tolist()
    with pytest.raises(ValueError, match=r"counts must have shape \[4\]"):
        MBACounts.zeros(4).load_state_dict(made.state_dict())
    with pytest.raises(ValueError, match="count must be 'occurrences', got 'samples'"):
        MBACounts.zeros(5, "occurrences").load_state_dict(made.state_dict())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((torch.tensor([1, 5]),), IndexError, r"ids must lie in 0..4 \(rows of counts\), got 1..5"),
        (([torch.tensor([1]), torch.tensor([1, 2])],), ValueError, "the same samples in every field, got 1, 2 samples"),
        ((torch.tensor(3),), ValueError, r"ids must have shape \[S, ...\], got a scalar"),
        ((torch.tensor([0.5]),), TypeError, "ids must be int64 or int32"),
        ((torch.tensor([1, 2]), torch.tensor([0, 3])), ValueError, "offsets must end at the number of history rows"),
    ],
)
def test_wrong_samples_are_named_and_not_counted(given, error, message):
    made = MBACounts.zeros(5)
    with pytest.raises(error, match=message):
        made.observe(*given)
    assert made.values.tolist() == [0] * 5
