"""Claims about Jagged and Padded: every way in, the way back, and what torch does with them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from din_kernels import Jagged, Padded

LENGTHS = torch.tensor([2, 0, 3, 1])
VALUES = torch.arange(12.0).view(6, 2)


def example() -> Jagged:
    return Jagged(VALUES, torch.tensor([0, 2, 2, 5, 6]))


def same(ours: Jagged, theirs: Jagged) -> None:
    assert torch.equal(ours.values, theirs.values)
    assert ours.offsets.tolist() == theirs.offsets.tolist()
    assert ours.offsets.dtype == torch.int64


def test_sizes_and_lengths_are_those_of_the_offsets():
    jagged = example()
    assert (jagged.num_rows, jagged.batch_size, len(jagged)) == (6, 4, 4)
    assert torch.equal(jagged.lengths(), LENGTHS)
    assert repr(jagged) == "Jagged(values=[6, 2] torch.float32, users=4)"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_come_from_lengths_of_either_integer_type(dtype):
    same(Jagged.from_lengths(VALUES, LENGTHS.to(dtype)), example())
    same(Jagged(VALUES, example().offsets.to(dtype)), example())


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_on_either_side_goes_both_ways(side):
    padded = example().to_padded(padding_side=side)
    assert padded.shape == (4, 3, 2)
    expected = [[0, 2, 0], [0, 0, 0], [4, 6, 8], [10, 0, 0]] if side == "right" else None
    expected = expected or [[0, 0, 2], [0, 0, 0], [4, 6, 8], [0, 0, 10]]
    assert padded[..., 0].tolist() == expected
    same(Jagged.from_padded(padded, LENGTHS, padding_side=side), example())


def test_padded_rows_come_from_any_mask_and_from_none():
    mask = torch.tensor([[True, False, True], [False] * 3, [True] * 3, [False, True, False]])
    padded = torch.full((4, 3, 2), float("nan")).masked_scatter(mask.unsqueeze(-1), VALUES)
    same(Jagged.from_padded(padded, mask=mask), example())
    whole = torch.randn(2, 3, 2)
    same(Jagged.from_padded(whole), Jagged(whole.view(6, 2), torch.tensor([0, 3, 6])))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_history_longer_than_max_length_keeps_its_newest_rows(side):
    padded = example().to_padded(max_length=2, padding_value=-1, padding_side=side)
    assert padded[2, :, 0].tolist() == [6, 8]
    assert padded[3, :, 0].tolist() == ([10, -1] if side == "right" else [-1, 10])
    assert example().to_padded(max_length=0).shape == (4, 0, 2)
    assert example().to_padded(max_length=5).shape == (4, 5, 2)


@given(lengths=st.lists(st.integers(0, 6), max_size=6), side=st.sampled_from(["right", "left"]))
def test_any_lengths_survive_padding(lengths, side):
    lengths = torch.tensor(lengths, dtype=torch.int64)
    jagged = Jagged.from_lengths(torch.randn(int(lengths.sum()), 3), lengths)
    same(Jagged.from_padded(jagged.to_padded(padding_side=side), lengths, padding_side=side), jagged)


def test_gradients_flow_through_padding_and_back():
    values = VALUES.clone().requires_grad_()
    jagged = Jagged(values, example().offsets)
    Jagged.from_padded(jagged.to_padded(), LENGTHS).values.sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))


def test_nested_tensors_go_both_ways_on_the_same_values():
    nested = example().to_nested()
    assert [each.shape[0] for each in nested.unbind()] == LENGTHS.tolist()
    back = Jagged.from_nested(nested)
    same(back, example())
    assert back.values.data_ptr() == VALUES.data_ptr()


def test_nested_tensors_with_holes_are_packed():
    holes = torch.nested.narrow(
        torch.arange(8.0).view(2, 4), 1, torch.tensor([1, 0]), torch.tensor([2, 1]), torch.jagged
    )
    same(Jagged.from_nested(holes), Jagged(torch.tensor([1.0, 2, 4]), torch.tensor([0, 2, 3])))


def test_a_dtype_moves_values_alone_and_a_device_both():
    assert example().to(torch.float64).values.dtype == torch.float64
    assert example().to(torch.float64).offsets.dtype == torch.int64
    moved = example().to("meta")
    assert moved.values.is_meta and moved.offsets.is_meta


@pytest.mark.parametrize(
    "made",
    [example(), Padded(torch.ones(2, 3, 4), torch.tensor([1, 3]), padding_side="left"), Padded(torch.ones(2, 3))],
)
def test_pytrees_are_rebuilt_from_their_leaves(made):
    leaves, spec = pytree.tree_flatten({"history": made})
    assert all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves)
    back = pytree.tree_unflatten(leaves, spec)["history"]
    assert type(back) is type(made)
    for name in made.__slots__:
        assert getattr(back, name) is getattr(made, name)
    doubled = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf * 2, made)
    assert torch.equal(doubled.values, made.values * 2)
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


def test_valid_positions_lie_away_from_the_padding():
    values, lengths = torch.ones(2, 3, 4), torch.tensor([1, 3])
    assert Padded(values, lengths).valid().tolist() == [[True, False, False], [True] * 3]
    assert Padded(values, lengths, padding_side="left").valid().tolist() == [[False, False, True], [True] * 3]
    assert Padded(values).valid().all()
    mask = torch.tensor([[False, True, False], [True] * 3])
    assert Padded(values, mask=mask).valid() is mask
