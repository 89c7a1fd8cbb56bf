"""Claims about calls that go straight to a backend: the same bits as by the op that torch knows, which whoever looks at
calls still meets."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import din_kernels as dk
from din_kernels.ops import registration
from din_kernels.ops.sparse_update import RULES, Hyper, Table, sparse_update

IDS, OFFSETS = torch.tensor([1, 4, 4, 0, 2, 3, 1]), torch.tensor([0, 2, 2, 7])


class Looks(TorchDispatchMode):
    """Passes everything on."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class LooksAtFunctions(TorchFunctionMode):
    """Passes everything on."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    """A tensor of a class of its own."""


@pytest.fixture
def by_torch(monkeypatch):
    """Names of the ops that were called as torch knows them, and of their backwards."""
    seen = []
    for method, words in (("forward_by_torch", ""), ("backward_by_torch", " backward")):
        original = getattr(registration.Op, method)

        def recorded(self, *arguments, original=original, words=words):
            seen.append(self.name + words)
            return original(self, *arguments)

        monkeypatch.setattr(registration.Op, method, recorded)
    return seen


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


# --- the same bits ----------------------------------------------------------------------------------------------------


def unit(dtype=torch.float32, gather=None, return_weights=False, **options):
    torch.manual_seed(0)
    module = dk.nn.LocalActivationUnit(6, (5, 3), **options)
    if gather is None:
        leaves = [normal(3, 6, dtype=dtype), normal(7, 6, seed=1, dtype=dtype)]
        inputs = leaves[0], dk.Jagged(leaves[1], OFFSETS)
    else:
        leaves = [normal(5, 4, dtype=dtype), normal(5, 2, seed=1, dtype=dtype)]
        ids = [IDS, IDS.flip(0)]
        query = dk.Gather([each[:3] for each in ids], leaves, sparse=gather, padding_idx=2)
        inputs = query, dk.Gather(ids, leaves, OFFSETS, sparse=gather, padding_idx=2)
    found = module(*inputs, return_weights=return_weights)
    pooled, weights = found if return_weights else (found, None)
    results = [pooled] if weights is None else [pooled, weights.values]
    return results, [*leaves, *module.parameters()], list(module.buffers())


def dice(dtype=torch.float32, training=True, mask=None, affine=False):
    x, alpha, weight, bias = normal(5, 4, dtype=dtype), *(normal(4, seed=at) for at in (1, 2, 3))
    learned = {"weight": weight, "bias": bias} if affine else {}
    y, *others = dk.dice(x, alpha, torch.zeros(4), torch.ones(4), training=training, mask=mask, **learned)
    return [y], [x, alpha, *learned.values()], others


def penalty(sparse):
    table = normal(5, 4)
    return [dk.mba_penalty(table, IDS, torch.arange(5), 0.3, 4, sparse=sparse)], [table], []


CASES = {
    "unit": lambda: unit(),
    "unit, bf16": lambda: unit(torch.bfloat16),
    "unit, weights": lambda: unit(return_weights=True, normalize="softmax"),
    "unit, outer, prelu": lambda: unit(features="outer", activation="prelu"),
    "unit, dice": lambda: unit(activation="dice"),
    "unit, ids, sparse": lambda: unit(gather=True),
    "unit, ids, dense": lambda: unit(gather=False),
    "dice": lambda: dice(),
    "dice, fp16, affine": lambda: dice(torch.float16, affine=True),
    "dice, evaluation": lambda: dice(training=False),
    "dice, mask": lambda: dice(mask=torch.tensor([True, False, True, True, False])),
    "penalty, sparse": lambda: penalty(True),
    "penalty, dense": lambda: penalty(False),
}


def with_gradients(case):
    """Results, gradients and other results of a case."""
    results, leaves, others = CASES[case]()
    loss = sum((each.float().square().sum() for each in results), torch.zeros(()))
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [*results, *grads, *others]


def assert_same_bits(ours, expected):
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one.dtype, one.layout, one.requires_grad) == (other.dtype, other.layout, other.requires_grad)
            if one.is_sparse:
                assert one.is_coalesced() == other.is_coalesced()
                assert torch.equal(one._indices(), other._indices()) and torch.equal(one._values(), other._values())
            else:
                assert torch.equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_the_same_bits_by_the_op_that_torch_knows(case, by_torch):
    ours = with_gradients(case)
    assert by_torch == []
    with Looks():
        expected = with_gradients(case)
    assert len(by_torch) == 2 and by_torch[1] == f"{by_torch[0]} backward"
    assert_same_bits(ours, expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_sparse_step_is_the_same_bits_by_the_op_that_torch_knows(rule, by_torch):
    def step():
        weight = torch.arange(20.0).view(5, 4)
        states = [torch.zeros(5, 4) if shape == "VD" else torch.zeros(5) for shape in RULES[rule]]
        hyper = Hyper(0.1, 0.1, 0.9, 0.99, 1e-8, 0.1)
        sparse_update([Table(weight, states, IDS, normal(7, 4).detach(), hyper, torch.arange(5))], rule)
        return [weight, *states]

    ours = step()
    assert by_torch == []
    with Looks():
        expected = step()
    assert by_torch == ["sparse_update"]
    assert_same_bits(ours, expected)


# --- whoever looks at calls -------------------------------------------------------------------------------------------


def forward_of(op: str):
    """A function of one tensor [5, 4] that calls `op`, whose other arguments are there."""
    torch.manual_seed(0)
    module, offsets = dk.nn.LocalActivationUnit(4, (3,)).requires_grad_(False), torch.tensor([0, 2, 2, 5])
    alpha, counts = torch.zeros(4), torch.arange(5)
    return {
        "local_activation": lambda x: module(x[:3], dk.Jagged(x, offsets)),
        "dice": lambda x: dk.dice(x, alpha, training=True)[0],
        "mba_penalty": lambda x: dk.mba_penalty(x, IDS, counts, 0.3),
    }[op]


WITH_GRADIENT = ("local_activation", "dice", "mba_penalty")


@pytest.mark.parametrize("op", WITH_GRADIENT)
@pytest.mark.parametrize("looks", [Looks, LooksAtFunctions])
@pytest.mark.parametrize("grad", [False, True])
def test_a_mode_of_torch_meets_the_op_that_torch_knows(op, looks, grad, by_torch):
    x, function = normal(5, 4).requires_grad_(grad), forward_of(op)
    with looks():
        function(x)
    assert by_torch == [op]


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_a_mode_around_the_backward_alone_meets_its_op(op, by_torch):
    y = forward_of(op)(normal(5, 4))
    with Looks():
        y.sum().backward()
    assert by_torch == [f"{op} backward"]


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_a_jit_trace_holds_the_op(op, by_torch):
    traced = torch.jit.trace(forward_of(op), normal(5, 4).detach(), check_trace=False)
    assert by_torch == [op] and f"din_kernels::{op}" in str(traced.graph)


@pytest.mark.parametrize("kind", ["real", "fake"])
def test_a_graph_of_fx_holds_the_op(kind, by_torch):
    def function(x, alpha):
        return dk.dice(x, alpha, training=True)[0]

    graph = make_fx(function, tracing_mode=kind)(normal(5, 4).detach(), torch.zeros(4))
    assert by_torch == ["dice"] and "din_kernels.dice" in graph.code


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_an_exported_program_holds_the_op(op):
    function = forward_of(op)

    class Module(torch.nn.Module):
        def forward(self, x):
            return function(x)

    program = torch.export.export(Module(), (normal(5, 4).detach(),), strict=False)
    assert f"din_kernels.{op}" in program.graph_module.code


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_torch_func_vmap_meets_the_op(op, by_torch):
    try:
        torch.func.vmap(forward_of(op))(normal(2, 5, 4).detach())
    except NotImplementedError as refused:
        assert f"{op} does not support torch.func.vmap" in str(refused)
    assert set(by_torch) == {op}


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_functionalization_meets_the_op(op, by_torch):
    x = normal(5, 4).detach()
    assert torch.equal(torch.func.functionalize(forward_of(op))(x), forward_of(op)(x))
    assert by_torch == [op]


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_tensors_of_other_kinds_meet_the_op(op, by_torch):
    x = normal(5, 4).detach()
    expected = forward_of(op)(x)
    leaked = []
    torch.func.functionalize(lambda inner: leaked.append(inner + 0) or inner)(x)
    torch.func.grad(lambda inner: (leaked.append(inner), inner.sum())[1])(x)
    negated = torch.complex(x, -x).conj().imag
    assert negated.is_neg() and torch.equal(negated, x)
    for strange in (x.as_subclass(Marked), negated, leaked[1]):
        by_torch.clear()
        torch.testing.assert_close(forward_of(op)(strange).as_subclass(torch.Tensor), expected, rtol=0, atol=0)
        assert by_torch == [op]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(each) for each in (x, torch.zeros(4))]
    by_torch.clear()
    assert dk.dice(*fakes, training=True)[0].shape == x.shape and by_torch == ["dice"]


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_gradients_of_other_kinds_meet_the_backward_op(op, by_torch):
    x = normal(5, 4)
    y = forward_of(op)(x)
    grad = torch.ones_like(y)
    negated = torch.complex(grad, -grad).conj().imag
    (expected,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    assert by_torch == []
    (ours,) = torch.autograd.grad(y, x, negated)
    assert by_torch == [f"{op} backward"] and torch.equal(ours, expected)


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_a_gradient_says_that_it_cannot_be_differentiated_again(op, by_torch):
    x = normal(5, 4)
    y = forward_of(op)(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert by_torch == [f"{op} backward"]
    with pytest.raises(NotImplementedError, match=f"{op} has no double backward"):
        grad.sum().backward()


@pytest.mark.parametrize("looks", [False, True])
def test_statistics_have_no_gradient(looks):
    with Looks() if looks else nullcontext():
        y, *others = dk.dice(normal(5, 4), normal(4), training=True)
    assert y.requires_grad and not any(each.requires_grad for each in others)


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_compiled_autograd_makes_the_same_gradients(op):
    grads = []
    for context in (nullcontext(), compiled_autograd._enable(torch.compile(backend="aot_eager"))):
        x = normal(5, 4)
        with context:
            forward_of(op)(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


# --- what autograd promises -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_the_same_tensors_are_saved_by_the_op_that_torch_knows(op):
    saved = []
    for looks in (False, True):
        packed = []

        def pack(tensor, packed=packed):
            packed.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda each: each), Looks() if looks else nullcontext():
            forward_of(op)(normal(5, 4))
        saved.append([(each.dtype, each.shape) for each in packed])
    assert saved[0] and saved[0] == saved[1]


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_what_hooks_make_of_saved_tensors_meets_the_backward_op(op, by_torch):
    x, y = normal(5, 4), normal(5, 4)
    forward_of(op)(x).square().sum().backward()
    with torch.autograd.graph.saved_tensors_hooks(lambda each: each, lambda each: each.as_subclass(Marked)):
        pooled = forward_of(op)(y)
    assert by_torch == []
    pooled.backward((2 * pooled).detach())
    assert by_torch == [f"{op} backward"] and torch.equal(x.grad, y.grad.as_subclass(torch.Tensor))


@pytest.mark.parametrize("op", WITH_GRADIENT)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same_bits(op, reentrant, by_torch):
    grads = []
    for call in (forward_of(op), lambda x: checkpoint(forward_of(op), x, use_reentrant=reentrant)):
        x = normal(5, 4)
        call(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads) and by_torch == []


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_a_change_of_what_was_saved_is_noticed(op):
    x = normal(5, 4)
    y = forward_of(op)(x)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_a_graph_that_was_freed_says_so(op):
    y = forward_of(op)(normal(5, 4))
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


@pytest.mark.parametrize("op", WITH_GRADIENT)
def test_a_default_device_changes_nothing(op, by_torch):
    x, function = normal(5, 4), forward_of(op)
    expected = function(x)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    with torch.device("meta"):
        y = function(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
    assert by_torch == [] and torch.equal(y, expected) and torch.equal(grad, expected_grad)
