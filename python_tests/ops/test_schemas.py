"""Claims about the ops' descriptions: what the schemas say and what `backends.calls` says is the same."""

from __future__ import annotations

import types
import typing

import pytest
import torch

from din_kernels import options
from din_kernels.backends import calls

WITH_BACKWARD = [op for op in options.OPS if op != "sparse_update"]

# What a field of a call is in a schema. An int may be a symbol while tracing.
TYPES = {
    torch.Tensor: {"Tensor"},
    torch.Tensor | None: {"Optional[Tensor]"},
    list[torch.Tensor]: {"List[Tensor]"},
    list[torch.Tensor | None]: {"List[Optional[Tensor]]"},
    list[float]: {"List[float]"},
    list[int]: {"List[int]"},
    list[bool]: {"List[bool]"},
    int: {"int", "SymInt"},
    bool: {"bool"},
    float: {"float"},
    str: {"str"},
}


def tuple_of(op: str, kind: str) -> type:
    """The named tuple <Op><kind> of `backends.calls`."""
    return getattr(calls, "".join(word.capitalize() for word in op.split("_")) + kind)


def fields(described: type, prefix: str = "") -> list[tuple[str, object]]:
    """(name, type) of every field, tensors with `prefix` before their names."""
    hints = typing.get_type_hints(described)

    def of_tensor(kind):
        inner = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        return torch.Tensor in inner

    return [((prefix if of_tensor(hints[name]) else "") + name, hints[name]) for name in described._fields]


def schema(op: str):
    return getattr(torch.ops.din_kernels, op).default._schema


def assert_same(arguments, described) -> None:
    assert [each.name for each in arguments] == [name for name, _ in described]
    for argument, (name, kind) in zip(arguments, described, strict=True):
        assert str(argument.real_type) in TYPES[kind], f"{name} is {argument.real_type} in the schema, {kind} in calls"


@pytest.mark.parametrize("op", options.OPS)
def test_an_op_takes_the_fields_of_its_call_in_order_and_the_backend(op):
    assert_same(schema(op).arguments, [*fields(tuple_of(op, "Call")), ("backend", str)])


@pytest.mark.parametrize("op", WITH_BACKWARD)
def test_a_backward_takes_the_fields_of_grads_call_and_saved_in_order_and_the_backend(op):
    described = [
        *fields(tuple_of(op, "Grads"), prefix="grad_"),
        *fields(tuple_of(op, "Call")),
        *fields(tuple_of(op, "Saved"), prefix="saved_"),
        ("backend", str),
    ]
    assert_same(schema(f"{op}_backward").arguments, described)


@pytest.mark.parametrize("op", WITH_BACKWARD)
def test_an_op_returns_the_fields_of_its_result_in_order(op):
    assert_same(schema(op).returns, fields(tuple_of(op, "Result")))


@pytest.mark.parametrize("op", ["local_activation", "dice"])
def test_a_backward_returns_the_fields_of_its_gradients_in_order(op):
    assert_same(schema(f"{op}_backward").returns, fields(tuple_of(op, "Gradients")))


@pytest.mark.parametrize("op", WITH_BACKWARD)
def test_what_is_saved_is_part_of_the_result(op):
    assert set(tuple_of(op, "Saved")._fields) <= set(tuple_of(op, "Result")._fields)


def test_the_numbers_of_a_step_are_fields_of_its_call():
    assert set(calls.Hyper._fields) <= set(calls.SparseUpdateCall._fields)
    at = [calls.SparseUpdateCall._fields.index(name) for name in calls.Hyper._fields]
    assert at == list(range(at[0], at[0] + len(at)))
