"""Every bad input raises the named error, which says the argument, what was expected and what came."""

from __future__ import annotations

import re

import pytest
import torch

import din_kernels as dk
from din_kernels.nn import Dice, LocalActivationUnit
from din_kernels.ops.sparse_update import Hyper, Table, sparse_update

VALUES, OFFSETS = torch.randn(5, 3), torch.tensor([0, 2, 5])
PADDED = torch.randn(2, 4, 3)
META = torch.empty(2, dtype=torch.int64, device="meta")


def raises(error, *parts):
    """Expects exactly `error`, whose message holds all `parts` in this order."""
    return pytest.raises(error, match=".*".join(map(re.escape, parts)))


def attend(**changes):
    """A valid call of local_activation but for `changes`."""
    given = {
        "query": torch.randn(2, 3), "history": dk.Jagged(VALUES, OFFSETS),
        "weights": [torch.randn(4, 12), torch.randn(1, 4)], "biases": [torch.randn(4), torch.randn(1)],
    } | changes  # fmt: skip
    return dk.local_activation(**given)


def with_weight(index, tensor, name="weights"):
    tensors = {"weights": [torch.randn(4, 12), torch.randn(1, 4)], "biases": [torch.randn(4), torch.randn(1)]}[name]
    tensors[index] = tensor
    return {name: tensors}


def test_the_call_that_the_cases_change_is_valid():
    assert attend().shape == (2, 3)


# --- local_activation -------------------------------------------------------------------------------------------------

CALLS = [
    ({"query": [[1.0]]}, TypeError, "query must be a torch.Tensor", "got list"),
    ({"query": torch.randn(2, 2, 3)}, ValueError, "query must have shape [Q, D]", "got [2, 2, 3]"),
    ({"query": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "query must have a floating-point dtype", "int64"),
    ({"query": torch.randn(3, 3)}, ValueError, "query must have one row per history (2)", "got 3"),
    ({"query": torch.randn(2, 3, device="meta")}, ValueError, "history must be on the device of query (meta)", "cpu"),
    ({"query": torch.randn(2, 3).double()}, TypeError, "history must have the dtype of query", "float32"),
    ({"history": VALUES}, TypeError, "history must be a din_kernels.Jagged", "got Tensor"),
    ({"query": torch.randn(2, 4)}, ValueError, "history must have shape [N, 4]", "got [5, 3]"),
    ({"history": dk.Padded(torch.randn(2, 4, 5))}, ValueError, "history must have shape [B, T, 3]", "got [2, 4, 5]"),
    ({"history": dk.Jagged(torch.randn(5, 3, 1), OFFSETS)}, ValueError, "history must have shape [N, 3]", "[5, 3, 1]"),
    ({"features": "cross"}, ValueError, "features must be one of 'concat', 'product', 'outer'", "got 'cross'"),
    ({"activation": "gelu"}, ValueError, "activation must be one of 'sigmoid', 'relu'", "got 'gelu'"),
    ({"normalize": "l1"}, ValueError, "normalize must be one of 'none', 'softmax'", "got 'l1'"),
    ({"weights": []}, ValueError, "weights and biases must be lists of the same length", "got 0 and 2"),
    ({"biases": [torch.randn(4)]}, ValueError, "weights and biases must be lists of the same length", "got 2 and 1"),
    ({"weights": [torch.randn(1, 12)] * 5, "biases": [torch.randn(1)] * 5}, ValueError,
     "weights must hold 0 to 3 hidden", "got 5"),
    (with_weight(0, None), TypeError, "weights[0] must be a torch.Tensor", "got NoneType"),
    (with_weight(0, torch.randn(12)), ValueError, "weights[0] must have shape [out, in]", "got [12]"),
    (with_weight(0, torch.randn(4, 9)), ValueError, "weights[0] must have shape [4, 12]", "features='concat' of D=3",
     "got [4, 9]"),
    (with_weight(1, torch.randn(1, 5)), ValueError, "weights[1] must have shape [1, 4]", "got [1, 5]"),
    (with_weight(1, torch.randn(2, 4)), ValueError, "weights[1] must have shape [1, 4]", "got [2, 4]"),
    (with_weight(0, torch.randn(4, 12).double()), TypeError, "weights[0] must have", "dtype", "float64"),
    (with_weight(0, torch.randn(4, 12, device="meta")), ValueError, "weights[0] must be on the device of query (cpu)",
     "got meta"),
    (with_weight(0, torch.randn(4, 1), "biases"), ValueError, "biases[0] must have shape [out]", "got [4, 1]"),
    (with_weight(0, torch.randn(5), "biases"), ValueError, "biases[0] must have shape [4]", "got [5]"),
    (with_weight(1, torch.randn(1).double(), "biases"), TypeError, "biases[1] must have", "dtype", "float64"),
    ({"activation": "prelu"}, ValueError, "activation_params[0] must have 'slope' for activation='prelu'", "got []"),
    ({"activation": "prelu", "activation_params": []}, ValueError, "activation_params"),
    ({"activation": "prelu", "activation_params": [{}, {}]}, ValueError, "one dict per hidden layer (1)", "got 2"),
    ({"activation": "prelu", "activation_params": [{"slope": 0.1}]}, TypeError,
     "activation_params[0]['slope'] must be a torch.Tensor", "got float"),
    ({"activation": "prelu", "activation_params": [{"slope": torch.ones(3)}]}, ValueError,
     "activation_params[0]['slope'] must have shape [4] or [1]", "got [3]"),
    ({"activation": "dice", "activation_params": [{"alpha": torch.ones(4)}]}, ValueError,
     "activation_params[0] must have 'mean' for activation='dice'", "alpha"),
    ({"activation": "prelu", "activation_params": [{"slope": torch.ones(4) + 0j}]}, TypeError,
     "activation_params[0]['slope'] must hold real numbers", "complex64"),
    ({"activation": "dice", "activation_params": [{"alpha": torch.ones(4), "training": True, "eps": -1}]}, ValueError,
     "activation_params[0]['eps'] must be at least 0", "got -1"),
    ({"activation": "dice", "activation_params": [{"alpha": torch.ones(4), "training": True, "eps": torch.nan}]},
     ValueError, "activation_params[0]['eps'] must be at least 0", "got nan"),
    ({"activation": "dice", "activation_params": [{"alpha": torch.ones(4), "training": "yes"}]}, TypeError,
     "activation_params[0]['training'] must be a bool", "got str"),
    ({"scale": "1"}, TypeError, "scale must be a number", "got str"),
    ({"scale": 1j}, TypeError, "scale must be a number", "got complex"),
    ({"scale": torch.nan}, ValueError, "scale must be a finite number", "got nan"),
    ({"return_weights": 1}, TypeError, "return_weights must be a bool", "got int"),
    ({"query_to_user": torch.tensor([0, 1]), "return_weights": True, "total_pairs": 6}, ValueError,
     "total_pairs must be the number of pairs (5)", "got 6"),
    ({"query_to_user": torch.tensor([0, 1]), "return_weights": True, "total_pairs": 5.0}, TypeError,
     "total_pairs must be an integer", "got float"),
    ({"query_to_user": [0, 1]}, TypeError, "query_to_user must be a torch.Tensor", "got list"),
    ({"query_to_user": torch.tensor([0.0, 1.0])}, TypeError, "query_to_user must be int64 or int32", "float32"),
    ({"query_to_user": torch.tensor([0])}, ValueError, "query_to_user must have shape [2]", "got [1]"),
    ({"query_to_user": torch.tensor([[0], [1]])}, ValueError, "query_to_user must have shape [Q]", "got [2, 1]"),
    ({"query_to_user": torch.tensor([0, 2])}, IndexError, "query_to_user must lie in 0..1", "got 0..2"),
    ({"query_to_user": torch.tensor([-1, 0])}, IndexError, "query_to_user must lie in 0..1", "got -1..0"),
    ({"query_to_user": META}, ValueError, "query_to_user must be on the device of query (cpu)", "got meta"),
]  # fmt: skip


@pytest.mark.parametrize("case", CALLS, ids=lambda case: "-".join(case[2:]))
def test_a_bad_call_is_named(case):
    changes, error, *message = case
    with raises(error, *message):
        attend(**changes)


def test_autocast_changes_no_error():
    with torch.autocast("cpu", torch.bfloat16):
        for case in CALLS[:3]:
            test_a_bad_call_is_named(case)


# --- histories --------------------------------------------------------------------------------------------------------

HISTORIES = [
    (lambda: dk.Jagged([1.0], OFFSETS), TypeError, "values must be a torch.Tensor", "got list"),
    (lambda: dk.Jagged(torch.tensor(1.0), OFFSETS), ValueError, "values must have shape [N, ...]", "got a scalar"),
    (lambda: dk.Jagged(VALUES, [0, 5]), TypeError, "offsets must be a torch.Tensor", "got list"),
    (lambda: dk.Jagged(VALUES, OFFSETS.double()), TypeError, "offsets must be int64 or int32", "got torch.float64"),
    (lambda: dk.Jagged(VALUES, OFFSETS.view(1, 3)), ValueError, "offsets must have shape [U + 1]", "got [1, 3]"),
    (lambda: dk.Jagged(VALUES, OFFSETS[:0]), ValueError, "offsets must have at least one entry", "got 0"),
    (lambda: dk.Jagged(VALUES, torch.tensor([1, 5])), ValueError, "offsets must start at 0", "got 1"),
    (lambda: dk.Jagged(VALUES, torch.tensor([0, 4])), ValueError, "offsets must end at the number of history rows (5)",
     "got 4"),
    (lambda: dk.Jagged(VALUES, torch.tensor([0, 3, 2, 5])), ValueError, "offsets must not decrease", "got 3 then 2",
     "positions 1 and 2"),
    (lambda: dk.Jagged(VALUES, META), ValueError, "offsets must be on the device of values (cpu)", "got meta"),
    (lambda: dk.Jagged.from_lengths(VALUES, torch.tensor([2.0, 3.0])), TypeError, "lengths must be int64 or int32"),
    (lambda: dk.Jagged.from_lengths(VALUES, torch.tensor([2, 2])), ValueError, "offsets must end", "(5)", "got 4"),
    (lambda: dk.Jagged.from_lengths(VALUES, torch.tensor([6, -1])), ValueError, "offsets must not decrease"),
    (lambda: dk.Jagged.from_nested(VALUES), TypeError, "nested must be a torch.nested tensor", "got Tensor"),
    (lambda: dk.Jagged(VALUES, OFFSETS).to_padded(-1), ValueError, "max_length must be at least 0", "got -1"),
    (lambda: dk.Jagged(VALUES, OFFSETS).to_padded(padding_side="up"), ValueError,
     "padding_side must be one of 'right', 'left'", "got 'up'"),
    (lambda: dk.Padded(None), TypeError, "history must be a torch.Tensor", "got NoneType"),
    (lambda: dk.Padded(torch.ones(3)), ValueError, "history must have shape [B, T, ...]", "got [3]"),
    (lambda: dk.Padded(PADDED, padding_side="top"), ValueError, "padding_side must be one of", "got 'top'"),
    (lambda: dk.Padded(PADDED, torch.tensor([1, 2]), torch.ones(2, 4) > 0), ValueError,
     "lengths and mask exclude each other", "got both"),
    (lambda: dk.Padded(PADDED, [1, 2]), TypeError, "lengths must be a torch.Tensor", "got list"),
    (lambda: dk.Padded(PADDED, torch.tensor([1.0, 2.0])), TypeError, "lengths must be int64 or int32", "float32"),
    (lambda: dk.Padded(PADDED, torch.tensor([1])), ValueError, "lengths must have shape [2]", "got [1]"),
    (lambda: dk.Padded(PADDED, torch.tensor([1, 5])), ValueError, "lengths must lie in 0..4", "got 1..5"),
    (lambda: dk.Padded(PADDED, torch.tensor([-1, 4])), ValueError, "lengths must lie in 0..4", "got -1..4"),
    (lambda: dk.Padded(PADDED, META), ValueError, "lengths must be on the device of history (cpu)", "got meta"),
    (lambda: dk.Padded(PADDED, mask=torch.ones(2, 4)), TypeError, "mask must be bool, true where valid", "float32"),
    (lambda: dk.Padded(PADDED, mask=torch.ones(2, 3) > 0), ValueError, "mask must have shape [2, 4]", "got [2, 3]"),
    (lambda: dk.Padded(PADDED, mask=torch.ones(2) > 0), ValueError, "mask must have shape [B, T]", "got [2]"),
]  # fmt: skip


@pytest.mark.parametrize("case", HISTORIES, ids=lambda case: "-".join(case[2:]))
def test_a_bad_history_is_named(case):
    make, error, *message = case
    with raises(error, *message):
        make()


# --- modules ----------------------------------------------------------------------------------------------------------


def unit(**options):
    return LocalActivationUnit(3, (4,), **options)


MODULES = [
    (lambda: LocalActivationUnit(0), ValueError, "dim must be at least 1", "got 0"),
    (lambda: LocalActivationUnit(3, (1, 2, 3, 4)), ValueError, "hidden must be 0 to 3 widths", "got (1, 2, 3, 4)"),
    (lambda: LocalActivationUnit(3, (4, 0)), ValueError, "hidden must be 0 to 3 widths of at least 1", "got (4, 0)"),
    (lambda: unit(activation="gelu"), ValueError, "activation must be one of", "got 'gelu'"),
    (lambda: unit(features="cross"), ValueError, "features must be one of", "got 'cross'"),
    (lambda: unit(normalize="l1"), ValueError, "normalize must be one of", "got 'l1'"),
    (lambda: unit()(torch.randn(2, 3), VALUES), ValueError, "history must have shape [B, T, D]", "got [5, 3]"),
    (lambda: unit()(torch.randn(2, 3), [1]), TypeError, "history must be a torch.Tensor", "got list"),
    (lambda: unit()(torch.randn(3), PADDED), ValueError, "query must have shape [B, D], [B, 1, D]", "got [3]"),
    (lambda: unit()(torch.randn(3, 2, 3), PADDED), ValueError, "query must have one entry per history (2)", "got 3"),
    (lambda: unit()(torch.randn(2, 2, 3), PADDED, query_to_user=torch.tensor([0, 1])), ValueError,
     "query must have shape [Q, D] when query_to_user is given", "got [2, 2, 3]"),
    (lambda: unit()(torch.randn(2, 3), dk.Jagged(VALUES, OFFSETS), lengths=torch.tensor([2, 3])), ValueError,
     "lengths, mask and padding_side belong to a padded tensor", "Jagged"),
    (lambda: unit()(torch.randn(2, 4), torch.randn(2, 4, 4)), ValueError, "weights[0] must have shape [4, 16]", "12]"),
    (lambda: Dice(0), ValueError, "num_features must be at least 1", "got 0"),
    (lambda: Dice(3)(torch.randn(3)), ValueError, "x must have shape [..., C]", "got [3]"),
    (lambda: Dice(3)(torch.randn(2, 4)), ValueError, "x must have shape [..., 3] (num_features)", "got [2, 4]"),
    (lambda: Dice(1)(torch.randn(2, 4)), ValueError, "x must have shape [..., 1] (num_features)", "got [2, 4]"),
    (lambda: Dice(3)(torch.ones(2, 3, dtype=torch.int64)), TypeError, "x must have a floating-point dtype", "int64"),
    (lambda: Dice(3)(torch.randn(2, 3), torch.ones(2)), TypeError, "mask must be bool", "got torch.float32"),
    (lambda: Dice(3)(torch.randn(2, 3), torch.ones(3) > 0), ValueError, "mask must have shape [2]", "got [3]"),
    (lambda: dk.dice(torch.randn(2, 3), torch.zeros(3) + 0j, training=True), TypeError, "alpha must hold real numbers"),
    (lambda: dk.dice(torch.randn(2, 3), torch.zeros(3), training=1), TypeError, "training must be a bool", "got int"),
    (lambda: dk.dice(torch.randn(2, 3), torch.zeros(3), training=True, eps=-1), ValueError, "eps must be at least 0"),
    (lambda: dk.dice(torch.randn(2, 3), torch.zeros(3), training=True, eps=None), TypeError, "eps must be a number"),
    (lambda: dk.dice(torch.randn(2, 3), torch.zeros(3), training=False), TypeError, "mean must be a torch.Tensor",
     "got NoneType"),
    (lambda: dk.dice(torch.randn(2, 3), torch.zeros(3, device="meta"), training=True), ValueError,
     "alpha must be on the device of x (cpu)", "got meta"),
]  # fmt: skip


@pytest.mark.parametrize("case", MODULES, ids=lambda case: "-".join(case[2:]))
def test_a_bad_use_of_a_module_is_named(case):
    use, error, *message = case
    with raises(error, *message):
        use()


# --- sparse side ------------------------------------------------------------------------------------------------------

TABLE, COUNTS = torch.ones(4, 2), torch.ones(4, dtype=torch.int64)


def step(**changes) -> Table:
    """A valid part of a step but for `changes`."""
    return Table(TABLE.clone(), [], torch.tensor([0]), torch.ones(1, 2), Hyper(0.1, 0.1, coeff=0.1))._replace(**changes)


SPARSE = [
    (lambda: dk.mba_penalty(TABLE[0], torch.tensor([0]), COUNTS, 0.1), ValueError, "weight must have shape [V, D]"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0.0]), COUNTS, 0.1), TypeError, "ids must be int64 or int32", "32"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([4]), COUNTS, 0.1), IndexError, "ids must lie in 0..3", "got 4..4"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([-1]), COUNTS, 0.1), IndexError, "ids must lie in 0..3", "got -1..-1"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS[:3], 0.1), ValueError, "counts must have shape [4]", "3"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS, -1), ValueError, "coeff must be at least 0", "got -1"),
    (lambda: dk.mba_penalty([TABLE], torch.tensor([0]), [COUNTS], 1), ValueError, "ids must be a list", "got Tensor"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS, torch.nan), ValueError, "coeff must be at least", "nan"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS, "1"), TypeError, "coeff must be a number", "got str"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS, 1, 4), IndexError, "padding_idx must lie in 0..3", "4"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS, 1, -1), IndexError, "padding_idx must lie in 0..3", "-1"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS, 1, 0.5), TypeError, "padding_idx must be an integer"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS, 1, sparse=1), TypeError, "sparse must be a bool", "int"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS + 0j, 1), TypeError, "counts must hold real", "complex64"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([0]), COUNTS - 5, 1), ValueError, "counts must be at least 0", "-4"),
    (lambda: dk.mba_penalty(TABLE, torch.tensor([1]), COUNTS * torch.nan, 1), ValueError, "counts must be", "got nan"),
    (lambda: dk.MBA(-0.1, COUNTS), ValueError, "coeff must be at least 0", "got -0.1"),
    (lambda: dk.MBA(0.1, COUNTS, padding_idx=4), IndexError, "padding_idx must lie in 0..3", "got 4"),
    (lambda: dk.MBACounts(-COUNTS), ValueError, "counts must be at least 0", "got -1"),
    (lambda: dk.MBACounts(COUNTS, "clicks"), ValueError, "count must be one of 'samples', 'occurrences'", "'clicks'"),
    (lambda: dk.optim.SparseSGD([TABLE.clone().requires_grad_()], lr=-1), ValueError, "lr must be at least 0", "-1"),
    (lambda: sparse_update([Table(TABLE, [], torch.tensor([0]), torch.ones(2, 2), Hyper(1, 1))], "sgd"), ValueError,
     "grads of table 0 must have shape [1, 2]", "got [2, 2]"),
    (lambda: sparse_update([step(counts=COUNTS - 5)], "sgd"), ValueError, "counts of table 0 must be at least 0", "-4"),
    (lambda: sparse_update([step(counts=COUNTS + 0j)], "sgd"), TypeError, "counts of table 0 must hold real numbers"),
    (lambda: sparse_update([step(padding_idx=4)], "sgd"), IndexError, "padding_idx of table 0 must lie in 0..3"),
    (lambda: sparse_update([], "lamb"), ValueError, "rule must be one of 'sgd'", "got 'lamb'"),
]  # fmt: skip


@pytest.mark.parametrize("case", SPARSE, ids=lambda case: "-".join(case[2:]))
def test_a_bad_use_of_the_sparse_ops_is_named(case):
    use, error, *message = case
    with raises(error, *message):
        use()


# --- what bad input leaves behind -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [torch.tensor([0, 9]), torch.tensor([-1, 0])])
def test_a_refused_step_writes_nothing_to_any_table(bad, backend):
    good = Table(torch.ones(4, 2), [torch.zeros(4, 2)], torch.tensor([1]), torch.ones(1, 2), Hyper(0.1, 0.1, eps=1))
    wrong = Table(torch.ones(4, 2), [torch.zeros(4, 2)], bad, torch.ones(2, 2), Hyper(0.1, 0.1, eps=1))
    with dk.use_backend(backend), raises(IndexError, "ids of table 1 must lie in 0..3"):
        sparse_update([good, wrong], "adagrad")
    for table in (good, wrong):
        assert torch.equal(table.weight, torch.ones(4, 2)) and not table.states[0].any()


@pytest.mark.parametrize("bad", [{"lengths": torch.tensor([1, 9])}, {"query_to_user": torch.tensor([0, 7])}])
def test_a_refused_call_leaves_dice_and_the_inputs_alone(bad):
    layer = unit(activation="dice")
    query, history = torch.randn(2, 3, requires_grad=True), PADDED.clone()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises((ValueError, IndexError)):
        layer(query, history, **bad)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert torch.equal(history, PADDED) and query.grad is None


def test_values_on_another_device_are_checked_only_where_they_can_be_read():
    with dk.debug_checks():
        dk.Jagged(torch.empty(5, 3, device="meta"), torch.empty(3, dtype=torch.int64, device="meta"))


def test_parameters_of_an_activation_must_be_dicts():
    weights, biases = [torch.ones(4, 32), torch.ones(1, 4)], [torch.ones(4), torch.ones(1)]
    history = dk.Jagged(torch.ones(2, 8), torch.tensor([0, 2]))
    with pytest.raises(TypeError, match=r"activation_params\[0\] must be a dict, got Tensor"):
        dk.local_activation(torch.ones(1, 8), history, weights, biases, activation="prelu",
                            activation_params=[torch.ones(4)])  # fmt: skip


def test_query_and_history_by_id_must_agree_in_sparse():
    table, ids = torch.ones(3, 8), torch.tensor([0, 1])
    unit = dk.nn.LocalActivationUnit(8, (4,))
    with pytest.raises(ValueError, match="query and history must agree in sparse"):
        unit(dk.Gather(ids[:1], table, sparse=True), dk.Gather(ids, table, torch.tensor([0, 2]), sparse=False))


def test_padding_side_belongs_to_a_padded_tensor():
    unit = dk.nn.LocalActivationUnit(8, (4,))
    with pytest.raises(ValueError, match="padding_side belong to a padded tensor, got them with a Jagged"):
        unit(torch.ones(1, 8), dk.Jagged(torch.ones(2, 8), torch.tensor([0, 2])), padding_side="left")
