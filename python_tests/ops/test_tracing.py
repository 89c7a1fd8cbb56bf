"""Claims about torch.compile, torch.export and opcheck, for every way to give a history and every kind of unit."""

from __future__ import annotations

import pytest
import torch
from support.recorded_ops import opcheck_forward_and_backward, ops_called

import din_kernels as dk
from din_kernels.ops.sparse_update import RULES, Hyper, Table, sparse_update

LENGTHS = torch.tensor([3, 0, 12, 9])
OFFSETS = torch.nn.functional.pad(LENGTHS.cumsum(0), (1, 0))
USERS = torch.tensor([3, 0, 3, 2, 2, 1])
UNITS = {
    "sigmoid": {},
    "outer": {"features": "outer"},
    "product, softmax": {"features": "product", "normalize": "softmax"},
    "dice": {"activation": "dice"},
    "dice, padded statistics": {"activation": "dice", "stats": "padded"},
}
HISTORIES = ("packed", "padded", "masked", "by id")


class Inputs:
    """Leaves, and the call of a unit on them, for one way to give the history."""

    def __init__(self, history: str, to_user: bool = False):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

        self.kind, self.users = history, USERS if to_user else None
        self.query = normal(len(USERS) if to_user else len(LENGTHS), 6)
        self.rows = normal(int(OFFSETS[-1]), 6) if history == "packed" else normal(4, 12, 6)
        self.tables = [normal(9, 4), normal(5, 2)]
        self.ids = [torch.randint(0, n, (int(OFFSETS[-1]),), generator=generator) for n in (9, 5)]
        self.mask = torch.arange(12) % 2 < (LENGTHS > 0)[:, None]

    def leaves(self):
        return [self.query, *(self.tables if self.kind == "by id" else [self.rows])]

    def __call__(self, unit):
        if self.kind == "by id":
            history = dk.Gather(self.ids, self.tables, OFFSETS, sparse=False)
        elif self.kind == "packed":
            history = dk.Jagged(self.rows, OFFSETS)
        elif self.kind == "padded":
            history = dk.Padded(self.rows, LENGTHS, padding_side="left")
        else:
            history = dk.Padded(self.rows, mask=self.mask)
        return unit(self.query, history, query_to_user=self.users)


def unit_of(name: str) -> dk.nn.LocalActivationUnit:
    torch.manual_seed(0)
    return dk.nn.LocalActivationUnit(6, (7, 5), dtype=torch.float64, **UNITS[name])


def possible(unit: str, history: str) -> bool:
    return "padded statistics" not in unit or history in ("padded", "masked")


CASES = [(unit, history) for unit in UNITS for history in HISTORIES if possible(unit, history)]


@pytest.mark.parametrize(("unit", "history"), CASES)
def test_compiled_training_equals_eager_without_a_graph_break(unit, history, backend, device):
    found = []
    with dk.use_backend(backend):
        for compiled in (False, True):
            torch._dynamo.reset()
            inputs, module = Inputs(history, to_user=history != "masked"), unit_of(unit)
            call = torch.compile(inputs, fullgraph=True, backend="aot_eager") if compiled else inputs
            pooled = call(module)
            grads = torch.autograd.grad(pooled.square().sum(), [*inputs.leaves(), *module.parameters()])
            found.append([pooled, *grads, *module.buffers()])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("history", HISTORIES)
def test_a_unit_that_takes_a_history_of_any_kind_exports(history, backend, device):
    inputs, unit = Inputs(history), unit_of("sigmoid").eval().requires_grad_(False)
    given = inputs.tables if history == "by id" else [inputs.rows]
    arguments = {
        "packed": lambda: dk.Jagged(given[0].detach(), OFFSETS),
        "padded": lambda: dk.Padded(given[0].detach(), LENGTHS),
        "masked": lambda: dk.Padded(given[0].detach(), mask=inputs.mask),
        "by id": lambda: dk.Gather(inputs.ids, [table.detach() for table in given], OFFSETS),
    }[history]()
    with dk.use_backend(backend):
        exported = torch.export.export(unit, (inputs.query.detach(), arguments)).module()
        torch.testing.assert_close(exported(inputs.query, arguments), unit(inputs.query, arguments), rtol=0, atol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("lengths", [[6, 4], [2, 8], [5, 6], [-1, 3]])
def test_lengths_that_only_a_compiled_call_meets_are_refused_before_anything_is_read(lengths, side, backend, device):
    unit = dk.nn.LocalActivationUnit(8, (4,))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(query, history, lengths):
        return unit(query, history, lengths=lengths, padding_side=side)

    with dk.use_backend(backend), pytest.raises(ValueError, match="lengths must"):
        call(torch.randn(2, 8), torch.randn(2, 5, 8), torch.tensor(lengths))


class Marked(torch.Tensor):
    """A tensor of a class of its own, which no public check looks into."""


def test_ids_of_any_tensor_class_are_checked_before_they_are_followed(backend, device):
    ids = torch.tensor([1, 2, 10**9]).as_subclass(Marked)
    history = dk.Gather(ids, torch.randn(5, 8), torch.tensor([0, 3]))
    with dk.use_backend(backend), pytest.raises(IndexError, match=r"history_ids\[0\] must lie in 0\.\.4"):
        dk.nn.LocalActivationUnit(8, (4,))(torch.randn(1, 8), history)


@pytest.mark.parametrize(
    ("unit", "history"),
    [
        ("sigmoid", "by id"),
        ("dice", "packed"),
        ("dice, padded statistics", "padded"),
        ("product, softmax", "masked"),
    ],
)
def test_ops_pass_opcheck(unit, history, backend, device):
    inputs, module = Inputs(history, to_user=history != "masked"), unit_of(unit)
    with dk.use_backend(backend):
        called = ops_called(lambda: inputs(module).sum().backward())
    opcheck_forward_and_backward(called)


# --- Dice and the penalty ---------------------------------------------------------------------------------------------


SIZES = (4, 7, 9)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("form", ["rows", "lengths", "mask", "jagged"])
def test_dice_compiles_whole_for_any_size_and_updates_its_statistics(form, dynamic, backend, device):
    torch._dynamo.reset()
    modules = [dk.nn.Dice(6, affine=True, dtype=torch.float64) for _ in range(2)]
    calls = [modules[0], torch.compile(modules[1], fullgraph=True, dynamic=dynamic, backend="aot_eager")]
    for n, training in zip(SIZES, (True, True, False), strict=True):
        rows = torch.randn(n, 5, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        lengths = torch.arange(n) % 5
        given = {"lengths": {"lengths": lengths}, "mask": {"mask": torch.arange(5) < lengths[:, None]}}.get(form, {})
        found = []
        for module, call in zip(modules, calls, strict=True):
            module.train(training)
            x = (rows[:, 0] if form in ("rows", "jagged") else rows).clone().requires_grad_()
            with dk.use_backend(backend):
                y = call(dk.Jagged(x, torch.tensor([0, 2, n])) if form == "jagged" else x, **given)
            y = y.values if form == "jagged" else y
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()]), *module.buffers()])
        for ours, expected in zip(*found, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_penalty_compiles_whole_for_any_number_of_rows_and_ids(sparse, dynamic, backend, device):
    torch._dynamo.reset()

    def penalty(weight, other, ids, counts):
        history = dk.Jagged(ids.reshape(-1), torch.tensor([0, 2, ids.numel()]))
        tables = ([weight, other], [ids, history], [counts, counts])
        return dk.mba_penalty(*tables, coeff=0.1, padding_idx=0, sparse=sparse)

    compiled = torch.compile(penalty, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in SIZES:
        generator = torch.Generator().manual_seed(n)
        ids, counts = (torch.randint(0, n, shape, generator=generator) for shape in ((n, 3), (n,)))
        found = []
        for call in (penalty, compiled):
            tables = [torch.linspace(-1, 1, n * 4, dtype=torch.float64).view(n, 4).requires_grad_() for _ in range(2)]
            with dk.use_backend(backend):
                value = call(*tables, ids, counts)
            value.backward()
            assert all(table.grad.is_sparse == sparse for table in tables)
            found.append([value, *(table.grad.to_dense() for table in tables)])
        for ours, expected in zip(*found, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


# --- the optimizers' op -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "rowwise_adagrad", "adam"])
def test_a_sparse_step_compiles_whole_for_any_number_of_rows_and_ids(rule, dynamic, backend, device):
    torch._dynamo.reset()
    hyper = Hyper(lr=0.1, step=0.1, beta1=0.9, beta2=0.99, eps=1e-8, coeff=0.1)

    def step(weight, states, ids, grads, counts):
        sparse_update([Table(weight, states, ids, grads, hyper, counts, padding_idx=0)], rule)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in SIZES:
        generator = torch.Generator().manual_seed(n)
        ids, counts = (torch.randint(0, n, shape, generator=generator) for shape in ((3 * n,), (n,)))
        grads = torch.randn(3 * n, 4, generator=generator, dtype=torch.float64)
        found = []
        for call in (step, compiled):
            weight = torch.linspace(-1, 1, n * 4, dtype=torch.float64).view(n, 4)
            sizes = {"VD": (n, 4), "V": (n,)}
            states = [torch.zeros(sizes[shape], dtype=torch.float64) for shape in RULES[rule]]
            with dk.use_backend(backend):
                call(weight, states, ids, grads, counts)
            found.append([weight, *states])
        for ours, expected in zip(*found, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
