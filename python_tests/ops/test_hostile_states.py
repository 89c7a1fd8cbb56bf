"""Hostile state dicts: what cannot be loaded is refused by its name, and nothing of it is half-written."""

from __future__ import annotations

import copy

import pytest
import torch

import din_kernels as dk
from din_kernels import models, nn, optim
from din_kernels.optim import MBACounts

NAN = float("nan")


def optimizer() -> optim.SparseAdagrad:
    table = torch.nn.Parameter(torch.ones(3, 2))
    return optim.SparseAdagrad([{"params": [table], "mba": dk.MBA(0.1, torch.tensor([1, 2, 3]), 0)}])


def counts(values, **rest) -> dict:
    return {"values": values, "count": "samples"} | rest


# Per entry of the saved settings of MBA, what stands there and what is said of it.
SETTINGS = [
    ("coeff", -1.0, "coeff must be at least 0, got -1.0"),
    ("coeff", NAN, "coeff must be at least 0, got nan"),
    ("padding_idx", 9, r"padding_idx must lie in 0\.\.2 \(rows of counts\), got 9"),
    ("decoupled", 2, "decoupled must be a bool, got int"),
    ("counts", None, "counts must be a dict of saved entries, got NoneType"),
    ("counts", {"values": torch.ones(3)}, "counts must hold 'count', got 'values'"),
    ("counts", counts(torch.tensor([1.0, NAN, 2.0])), "counts must be at least 0, got nan"),
    ("counts", counts(torch.tensor([1, -2, 2])), "counts must be at least 0, got -2"),
    ("counts", counts(torch.tensor([1.0, 2.5, 2.0])), "counts must be whole numbers"),
    ("counts", counts(torch.ones(4)), r"counts must have shape \[3\] \(rows of the table\), got \[4\]"),
    ("counts", counts(torch.ones(3) * 1j), "counts must hold real numbers of a common dtype, got torch.complex64"),
    ("counts", counts(torch.ones(3, device="meta")), "counts must have values, got a tensor on the meta device"),
    ("counts", counts(torch.ones(3).to_sparse()), "counts must be a plain .* got a tensor of layout torch.sparse_coo"),
    ("counts", counts([1, 2, 3]), "counts must be a torch.Tensor, got list"),
    ("counts", counts(torch.ones(3), count=5), "count must be 'samples', got 5"),
]

# The same of a table's saved state and of a group's numbers.
STATES = [
    ("sum", torch.ones(2), r"sum must have shape \[3, 2\], got \[2\]"),
    ("sum", torch.ones(3, 2, device="meta"), "sum must have values, got a tensor on the meta device"),
    ("sum", torch.ones(3, 2) * 1j, "sum must have a floating-point dtype .* got torch.complex64"),
    ("sum", None, "sum must be a torch.Tensor, got NoneType"),
    ("step", NAN, "step must be at least 0, got nan"),
    ("step", -4, "step must be at least 0, got -4"),
    ("step", "1", "step must be a number, got str"),
]
NUMBERS = [
    ("lr", NAN, "lr must be at least 0, got nan"),
    ("eps", None, "eps must be a number, got NoneType"),
    ("mba", 3, "mba must be a dict of saved entries, got int"),
]


def refused(made, message: str, change) -> None:
    """A saved state in which everything differs from `made`, and `change` is hostile, leaves `made` as it is."""
    state = copy.deepcopy(made.state_dict())
    before = str(state)
    [group] = state["param_groups"]
    group["lr"] = 7.0
    state["state"][0]["sum"] += 5
    group["mba"]["counts"]["values"] += 1
    group["mba"]["coeff"] = 0.5
    change(state)
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        made.load_state_dict(state)
    assert str(made.state_dict()) == before
    made.param_groups[0]["params"][0].grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (3, 2))
    made.step()  # and it goes on


@pytest.mark.parametrize(("name", "value", "message"), SETTINGS)
def test_an_optimizer_is_as_before_where_saved_settings_of_mba_are_refused(name, value, message):
    refused(optimizer(), message, lambda state: state["param_groups"][0]["mba"].update({name: value}))


def test_a_setting_of_mba_that_is_not_there_is_named():
    refused(optimizer(), "mba must hold 'coeff', got", lambda state: state["param_groups"][0]["mba"].pop("coeff"))


@pytest.mark.parametrize(("name", "value", "message"), STATES)
def test_an_optimizer_is_as_before_where_a_saved_state_is_refused(name, value, message):
    refused(optimizer(), message, lambda state: state["state"][0].update({name: value}))


@pytest.mark.parametrize(("name", "value", "message"), NUMBERS)
def test_an_optimizer_is_as_before_where_a_saved_number_is_refused(name, value, message):
    refused(optimizer(), message, lambda state: state["param_groups"][0].update({name: value}))


def test_saved_counts_of_another_table_do_not_come_into_a_group_without_mba():
    plain = optim.SparseAdagrad([torch.nn.Parameter(torch.ones(3, 2))])
    state = copy.deepcopy(plain.state_dict())
    state["param_groups"][0]["mba"] = dk.MBA(0.1, torch.ones(4)).state_dict()
    with pytest.raises(ValueError, match="mba must have counts for the 3 rows of its table, got 4"):
        plain.load_state_dict(state)
    assert plain.param_groups[0]["mba"] is None


@pytest.mark.parametrize(("name", "value", "message"), SETTINGS)
def test_mba_and_its_counts_are_as_before_where_a_state_is_refused(name, value, message):
    made = dk.MBA(0.1, MBACounts(torch.tensor([1, 2, 3])), 0)
    state = {"coeff": 0.5, "padding_idx": 1, "decoupled": True, "counts": counts(torch.tensor([4, 5, 6]))}
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        made.load_state_dict(state | {name: value})
    assert (made.coeff, made.padding_idx, made.decoupled) == (0.1, 0, False)
    assert made.counts.values.tolist() == [1, 2, 3]


@pytest.mark.parametrize("count", [torch.tensor(each) for each in (NAN, 2.5, -3, 1e30, 1j, True)], ids=str)
def test_dice_is_as_before_where_its_count_of_batches_is_none(count):
    made = nn.Dice(3, momentum=None)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()} | {"num_batches_tracked": count}
    with pytest.raises(RuntimeError, match="num_batches_tracked must be a whole number of at least 0, got"):
        made.load_state_dict(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_dice_loads_a_count_of_batches_of_any_real_dtype():
    for dtype in (torch.int64, torch.int32, torch.float32, torch.float64):
        made = nn.Dice(3, momentum=None)
        made.load_state_dict(made.state_dict() | {"num_batches_tracked": torch.tensor(7, dtype=dtype)})
        assert made.num_batches_tracked == 7 and made.num_batches_tracked.dtype == torch.int64


def _din() -> models.DIN:
    tables = {"item": models.Table(6, 3)}
    histories = {"behaviours": [("item", "item")]}
    return models.DIN(models.DINConfig(tables=tables, candidate={"item": "item"}, histories=histories))


@pytest.mark.parametrize("make", [lambda: nn.LocalActivationUnit(3, (4,), "dice"), _din], ids=["unit", "DIN"])
def test_a_module_names_the_entry_that_torch_refuses_and_leaves_it_as_it_is(make):
    """torch loads the other entries, as of any module."""
    for change in (lambda t: torch.cat([t, t]), lambda t: t.to("meta"), lambda t: None, lambda t: t.tolist()):
        made = make()
        for name, before in copy.deepcopy(made.state_dict()).items():
            with pytest.raises(RuntimeError, match=name.replace(".", r"\.")):
                made.load_state_dict(made.state_dict() | {name: change(before)})
            assert torch.equal(made.state_dict()[name], before)
    state = make().state_dict()
    name, tensor = state.popitem()
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        make().load_state_dict(state)
    with pytest.raises(RuntimeError, match='Unexpected key.*"another"'):
        make().load_state_dict(state | {name: tensor, "another": tensor})
