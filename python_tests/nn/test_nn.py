"""Claims about the modules: LocalActivationUnit as other code calls it, Dice beside BatchNorm."""

from __future__ import annotations

import pickle

import pytest
import torch

import din_kernels as dk
from din_kernels.nn import Dice, LocalActivationUnit
from din_kernels.ops.local_activation import ACTIVATIONS, FEATURES

B, T, D = 4, 6, 5
LENGTHS = torch.tensor([3, 0, 6, 1])


def padded_batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, T, D, generator=generator, dtype=dtype), torch.randn(B, D, generator=generator, dtype=dtype)


def made(**options) -> LocalActivationUnit:
    torch.manual_seed(0)
    return LocalActivationUnit(D, **({"hidden": (7, 4), "dtype": torch.float64} | options))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# --- LocalActivationUnit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("features", FEATURES)
def test_padded_and_packed_histories_pool_alike(features, activation):
    unit = made(features=features, activation=activation)
    unit.eval()  # Dice in training would change between two calls
    history, query = padded_batch()
    expected = unit(query, dk.Jagged.from_padded(history, LENGTHS))
    close(unit(query, history, lengths=LENGTHS), expected)
    close(unit(query, history, mask=torch.arange(T) < LENGTHS[:, None]), expected)
    close(unit(query, dk.Padded(history, LENGTHS)), expected)
    left = dk.Jagged.from_padded(history, LENGTHS).to_padded(T, padding_side="left")
    close(unit(query, left, lengths=LENGTHS, padding_side="left"), expected)


def test_history_without_lengths_or_mask_is_valid_throughout():
    unit, (history, query) = made(), padded_batch()
    close(unit(query, history), unit(query, history, lengths=torch.full((B,), T)))


def test_one_candidate_per_user_may_have_a_dimension_of_its_own():
    unit, (history, query) = made(), padded_batch()
    pooled, weights = unit(query.unsqueeze(1), history, lengths=LENGTHS, return_weights=True)
    flat, flat_weights = unit(query, history, lengths=LENGTHS, return_weights=True)
    assert pooled.shape == (B, 1, D) and weights.shape == (B, 1, T) and flat_weights.shape == (B, T)
    close(pooled[:, 0], flat)
    close(weights[:, 0], flat_weights)


def test_candidates_of_a_user_pool_as_each_of_them_alone():
    unit, (history, _) = made(normalize="softmax"), padded_batch()
    query = torch.randn(B, 3, D, dtype=torch.float64)
    pooled, weights = unit(query, history, lengths=LENGTHS, return_weights=True)
    assert pooled.shape == (B, 3, D) and weights.shape == (B, 3, T)
    for c in range(3):
        one, one_weights = unit(query[:, c], history, lengths=LENGTHS, return_weights=True)
        close(pooled[:, c], one)
        close(weights[:, c], one_weights)
    flat, jagged = unit(query, dk.Jagged.from_padded(history, LENGTHS), return_weights=True)
    close(flat, pooled)
    assert jagged.lengths().tolist() == LENGTHS.repeat_interleave(3).tolist()


def test_candidates_attend_to_the_user_that_query_to_user_names():
    unit, (history, query) = made(), padded_batch()
    user = torch.tensor([2, 2, 0, 1])
    close(unit(query, history, lengths=LENGTHS, query_to_user=user), unit(query, history[user], lengths=LENGTHS[user]))


def test_unit_equals_its_formula():
    unit, (history, query) = made(scale=0.5), padded_batch()
    q = query.unsqueeze(1).expand_as(history)
    x = torch.cat([q, history, q - history, q * history], -1)
    for layer in unit.linears[:-1]:
        x = torch.sigmoid(layer(x))
    close(unit(query, history), ((0.5 * unit.linears[-1](x)) * history).sum(1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_parameter_has_a_gradient(activation):
    unit, (history, query) = made(activation=activation), padded_batch()
    unit(query, history, lengths=LENGTHS).square().sum().backward()
    assert [name for name, p in unit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_state_dict_restores_the_unit(activation):
    unit, (history, query) = made(activation=activation), padded_batch()
    unit(query, history)  # moves Dice's statistics
    other = made(activation=activation)
    other.load_state_dict(unit.state_dict())
    copied = pickle.loads(pickle.dumps(unit))
    for each in (other.eval(), copied.eval()):
        close(each(query, history), unit.eval()(query, history))
    names = {name.split(".")[0] for name in unit.state_dict()}
    assert names == ({"linears", "activations"} if activation in ("prelu", "dice") else {"linears"})


@pytest.mark.parametrize("activation", ["sigmoid", "dice", "prelu"])
def test_unit_moves_as_every_module(activation):
    unit = LocalActivationUnit(D, (7, 4), activation=activation)
    assert {p.dtype for p in unit.state_dict().values()} == {torch.float32}
    history, query = padded_batch()
    assert unit.double()(query, history).dtype == torch.float64
    assert all(p.is_meta for p in LocalActivationUnit(D, activation=activation, device="meta").state_dict().values())
    unit.to("meta")
    assert all(p.is_meta for p in unit.parameters())
    restored = unit.to_empty(device="cpu")
    assert all(p.device.type == "cpu" for p in restored.state_dict().values())


def test_unit_says_what_it_is():
    assert "dim=5, hidden=(7, 4), activation='sigmoid', features='concat'" in repr(made())


# --- Dice -------------------------------------------------------------------------------------------------------------


def test_dice_keeps_the_running_statistics_of_batch_norm():
    dice, norm = Dice(3, momentum=0.3, dtype=torch.float64), torch.nn.BatchNorm1d(3, momentum=0.3, dtype=torch.float64)
    for step in range(4):
        x = torch.randn(5 + step, 3, dtype=torch.float64) * 2 + 1
        dice(x)
        norm(x)
    close(dice.running_mean, norm.running_mean)
    close(dice.running_var, norm.running_var)
    before = dice.running_mean.clone()
    dice.eval()(x)
    assert torch.equal(dice.running_mean, before), "evaluation reads them only"


@pytest.mark.parametrize("training", [True, False])
def test_dice_equals_its_formula_over_batch_norm(training):
    dice, norm = Dice(3, dtype=torch.float64), torch.nn.BatchNorm1d(3, eps=1e-8, affine=False, dtype=torch.float64)
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    dice.alpha.data.uniform_(-1, 1)
    dice(x), norm(x)
    dice.train(training), norm.train(training)
    p = torch.sigmoid(norm(x))
    expected = x * (dice.alpha + (1 - dice.alpha) * p)
    y = dice(x)
    close(y, expected)
    grads = [torch.autograd.grad(each.square().sum(), [x, dice.alpha]) for each in (y, expected)]
    for ours, theirs in zip(*grads, strict=True):
        close(ours, theirs)


def test_dice_starts_with_alpha_0_and_the_papers_eps():
    dice = Dice(4)
    assert dice.alpha.tolist() == [0] * 4 and dice.eps == 1e-8


def test_masked_rows_give_zero_and_count_in_no_statistic():
    dice, alone = Dice(3, dtype=torch.float64), Dice(3, dtype=torch.float64)
    x, mask = torch.randn(4, 5, 3, dtype=torch.float64), torch.rand(4, 5) < 0.6
    x[~mask] = float("nan")
    y = dice(x, mask)
    close(y[mask], alone(x[mask]))
    assert (y[~mask] == 0).all()
    close(dice.running_var, alone.running_var)


def test_a_batch_without_valid_rows_leaves_the_statistics_alone():
    dice = Dice(3)
    dice(torch.full((2, 3), float("nan")), torch.zeros(2, dtype=torch.bool))
    dice(torch.zeros(0, 3))
    assert dice.running_mean.tolist() == [0] * 3 and dice.running_var.tolist() == [1] * 3


def test_dice_statistics_of_half_precision_are_taken_in_float32():
    x = (1000 + torch.randn(64, 2)).half()
    _, mean, var, _ = dk.dice(x, torch.zeros(2), training=True)
    close(mean, x.float().mean(0))
    close(var, x.float().var(0, unbiased=False))


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_dice_in_the_unit_takes_statistics_of_the_valid_pairs_alone(layout):
    unit, (history, query) = made(activation="dice"), padded_batch()
    history[torch.arange(T) >= LENGTHS[:, None]] = float("nan")
    packed = dk.Jagged.from_padded(history, LENGTHS)
    pooled = unit(query, packed) if layout == "packed" else unit(query, history, lengths=LENGTHS)
    literal = made(activation="dice")
    q = query.repeat_interleave(LENGTHS, 0)
    x = torch.cat([q, packed.values, q - packed.values, q * packed.values], -1)
    for linear, dice in zip(literal.linears[:-1], literal.activations, strict=True):
        x = dice(linear(x))
    user = torch.arange(B).repeat_interleave(LENGTHS)
    expected = torch.zeros_like(query).index_add(0, user, literal.linears[-1](x) * packed.values)
    close(pooled, expected)
    for ours, theirs in zip(unit.activations, literal.activations, strict=True):
        close(ours.running_mean, theirs.running_mean)
        close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("lengths", [[0, 0, 0, 0], [0, 1, 0, 0]])
def test_dice_in_the_unit_survives_no_pair_and_one(lengths):
    unit, (history, query) = made(activation="dice"), padded_batch()
    query.requires_grad_()
    pooled = unit(query, history, lengths=torch.tensor(lengths))
    pooled.sum().backward()
    assert pooled.isfinite().all() and query.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in unit.parameters())
    assert all(layer.running_var.isfinite().all() for layer in unit.activations)


@pytest.mark.parametrize("shape", [(0, 1), (2, 0)])
def test_no_user_or_no_candidate_gives_empty_results(shape):
    unit = dk.nn.LocalActivationUnit(8, (4,))
    pooled, weights = unit(torch.randn(*shape, 8), torch.randn(shape[0], 5, 8), return_weights=True)
    assert pooled.shape == (*shape, 8) and weights.shape == (*shape, 5)


def test_number_of_weights_may_be_given():
    unit, users = dk.nn.LocalActivationUnit(8, (4,)), torch.tensor([1, 0, 1])
    history = dk.Jagged(torch.randn(5, 8), torch.tensor([0, 2, 5]))
    query = torch.randn(3, 8)
    _, expected = unit(query, history, query_to_user=users, return_weights=True)
    _, weights = unit(query, history, query_to_user=users, return_weights=True, total_pairs=8)
    assert torch.equal(weights.values, expected.values)
    with pytest.raises(ValueError, match="total_pairs"):
        unit(query, history, query_to_user=users, return_weights=True, total_pairs=7)


# --- Dice: initialization, cumulative statistics ----------------------------------------------------------------------


def test_dice_is_restored_by_reset_parameters_with_its_running_statistics():
    dice = Dice(3, momentum=None, affine=True)
    dice.train()(torch.randn(5, 3))
    with torch.no_grad():
        for parameter in dice.parameters():
            parameter.fill_(torch.nan)
    dice.reset_parameters()
    ones, zeros = [1.0] * 3, [0.0] * 3
    expected = {"alpha": zeros, "weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
    assert {name: value.tolist() for name, value in dice.state_dict().items()} == expected | {"num_batches_tracked": 0}


def test_dice_without_momentum_averages_all_batches_as_batch_norm():
    dice, norm = (kind(3, momentum=None, dtype=torch.float64) for kind in (Dice, torch.nn.BatchNorm1d))
    for step in range(4):
        x = torch.randn(5 + step, 3, dtype=torch.float64) * 2 + 1
        dice(x)
        norm(x)
        dice(x, torch.zeros(5 + step, dtype=torch.bool))  # no valid row: counts as no batch
    close(dice.running_mean, norm.running_mean)
    close(dice.running_var, norm.running_var)
    assert dice.num_batches_tracked == norm.num_batches_tracked == 4
    other = Dice(3, momentum=None, dtype=torch.float64)
    other.load_state_dict(dice.state_dict())
    close(other.eval()(x), dice.eval()(x))
    late = Dice(3)
    late.momentum = None
    with pytest.raises(ValueError, match="momentum must be None when Dice is made"):
        late(x.float())


def test_dice_without_momentum_in_the_unit_averages_all_batches():
    unit, (history, query) = made(activation="dice"), padded_batch()
    unit.activations[0] = Dice(7, momentum=None, dtype=torch.float64)
    means = []
    for shift in range(3):
        q, k = query + shift, history
        q = q.unsqueeze(1).expand_as(k)
        means.append(unit.linears[0](torch.cat([q, k, q - k, q * k], -1)).mean((0, 1)))
        unit(query + shift, history)
    close(unit.activations[0].running_mean, torch.stack(means).mean(0).detach())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dice(3, eps=-1), ValueError, "eps must be at least 0, got -1"),
        (lambda: Dice(3, eps=float("nan")), ValueError, "eps must be at least 0, got nan"),
        (lambda: Dice(3, eps="1e-8"), TypeError, "eps must be a number, got str"),
        (lambda: Dice(3, momentum=1.5), ValueError, r"momentum must lie in \[0, 1\], got 1.5"),
        (lambda: Dice(3, momentum=1j), TypeError, "momentum must be a number, got complex"),
        (lambda: Dice(2.5), TypeError, "num_features must be an integer, got float"),
        (lambda: Dice(True), TypeError, "num_features must be an integer, got bool"),
        (lambda: made(scale="1"), TypeError, "scale must be a number, got str"),
        (lambda: made(scale=float("inf")), ValueError, "scale must be finite, got inf"),
        (lambda: made(scale=float("nan")), ValueError, "scale must be a finite number, got nan"),
        (lambda: made(scale=None), TypeError, "scale must be a number, got NoneType"),
        (lambda: made(hidden=(4, 2.0)), TypeError, r"hidden\[1\] must be an integer, got float"),
        (lambda: made(hidden=8), TypeError, "hidden must be a sequence of widths, got int"),
        (lambda: made(hidden="80"), TypeError, "hidden must be a sequence of widths, got str"),
        (lambda: made(dtype=torch.complex64), TypeError, "dtype must be a floating-point dtype, got torch.complex64"),
        (lambda: Dice(3, dtype=torch.int64), TypeError, "dtype must be a floating-point dtype, got torch.int64"),
        (lambda: LocalActivationUnit("5"), TypeError, "dim must be an integer, got str"),
    ],
)
def test_a_wrong_number_is_named_when_the_module_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()
