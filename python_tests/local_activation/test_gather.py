"""Claims about rows by id: the unit reads them from the tables as if they had been copied out first."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils import _pytree as pytree

import din_kernels as dk

LENGTHS = torch.tensor([0, 3, 1, 30, 0, 70, 11, 0])
WIDTHS = (12, 7)
ROWS = (50, 9)


class Problem:
    """Histories and candidates by id into two tables, and leaves whose gradients are taken."""

    def __init__(
        self, dtype=torch.float64, ids=torch.int64, shared=True, users=None, hidden=(24, 9), features="concat"
    ):
        generator = torch.Generator().manual_seed(0)
        dim = sum(WIDTHS)
        wide = {"concat": 4 * dim, "outer": 2 * dim + dim * dim}[features]

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def pick(count):
            return [torch.randint(0, rows, (count,), generator=generator).to(ids) for rows in ROWS]

        def tables():
            return [normal(*shape).to(dtype).requires_grad_() for shape in zip(ROWS, WIDTHS, strict=True)]

        self.offsets = torch.nn.functional.pad(LENGTHS.cumsum(0), (1, 0))
        self.query_to_user = users
        self.tables = tables()
        self.query_tables = self.tables if shared else tables()
        self.ids, self.query_ids = pick(int(LENGTHS.sum())), pick(len(LENGTHS) if users is None else len(users))
        sizes = list(itertools.pairwise((wide, *hidden, 1)))
        compute = torch.promote_types(dtype, torch.float32)
        self.weights = [(normal(b, a) / a**0.5).to(compute).requires_grad_() for a, b in sizes]
        self.biases = [normal(b).to(compute).requires_grad_() for _, b in sizes]
        self.features = features

    def leaves(self):
        extra = [] if self.query_tables is self.tables else self.query_tables
        return [*self.tables, *extra, *self.weights, *self.biases]

    def gathers(self, sparse=True):
        query = dk.Gather(self.query_ids, self.query_tables, sparse=sparse)
        return query, dk.Gather(self.ids, self.tables, self.offsets, sparse=sparse)

    def copied(self):
        query, history = self.gathers(sparse=False)
        return query.rows(), dk.Jagged(history.rows(), self.offsets)

    def results(self, query, history, **options):
        pooled, weights = dk.local_activation(
            query,
            history,
            self.weights,
            self.biases,
            features=self.features,
            query_to_user=self.query_to_user,
            return_weights=True,
            **options,
        )
        loss = (pooled.double().square().sum() + weights.values.double().sin().sum()) / 10
        grads = torch.autograd.grad(loss, self.leaves())
        return [pooled, weights.values, *(grad.to_dense() if grad.is_sparse else grad for grad in grads)]


def same(ours, expected, tolerance):
    for a, b in zip(ours, expected, strict=True):
        assert (a.double() - b.double()).abs().max() <= tolerance * (1 + b.double().abs().max())


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
@pytest.mark.parametrize("features", ["concat", "outer"])
@pytest.mark.parametrize("users", [None, torch.tensor([5, 3, 3, 6, 0, 5, 5, 1, 3])])
def test_rows_by_id_equal_rows_copied_out(users, features, ids, shared, sparse, backend, device):
    problem = Problem(users=users, features=features, ids=ids, shared=shared)
    with dk.use_backend("reference"):
        expected = problem.results(*problem.copied())
    with dk.use_backend(backend):
        same(problem.results(*problem.gathers(sparse)), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [True, False])
def test_tables_in_half_precision_are_computed_in_fp32(shared, dtype, backend, device):
    problem = Problem(dtype, shared=shared)
    with dk.use_backend(backend):
        ours = problem.results(*problem.gathers())
        same(ours, problem.results(*problem.copied()), 2 * torch.finfo(dtype).eps)  # sums of rounded row gradients
    assert ours[0].dtype == dtype and ours[2].dtype == dtype and ours[-1].dtype == torch.float32


def test_query_and_history_may_differ_in_kind(backend, device):
    problem = Problem()
    with dk.use_backend(backend):
        expected = problem.results(*problem.copied())
        same(problem.results(problem.gathers()[0], problem.copied()[1]), expected, 1e-12)
        same(problem.results(problem.copied()[0], problem.gathers()[1]), expected, 1e-12)


def test_sparse_gradient_holds_every_id_of_the_batch_even_where_it_is_zero(backend, device):
    problem = Problem()
    query, history = problem.gathers()
    with dk.use_backend(backend):
        pooled = dk.local_activation(query, history, problem.weights, problem.biases)
    grads = torch.autograd.grad((pooled * 0).sum(), problem.tables)
    for grad, ids, query_ids in zip(grads, problem.ids, problem.query_ids, strict=True):
        assert grad.is_sparse
        assert torch.equal(grad._indices()[0].sort().values, torch.cat([ids, query_ids]).sort().values)
        assert grad._values().abs().max() == 0


def test_gradients_only_of_tables_that_ask(backend, device):
    problem = Problem(shared=False)
    problem.tables[0].requires_grad_(False)
    query, history = problem.gathers()
    with dk.use_backend(backend):
        dk.local_activation(query, history, problem.weights, problem.biases).sum().backward()
    assert problem.tables[0].grad is None
    assert problem.tables[1].grad is not None and problem.query_tables[0].grad is not None


def test_module_takes_rows_by_id(backend, device):
    problem = Problem(torch.float32)
    unit = dk.nn.LocalActivationUnit(sum(WIDTHS))
    with dk.use_backend(backend), torch.no_grad():
        same([unit(*problem.gathers())], [unit(*problem.copied())], 1e-6)


def test_gather_is_a_pytree():
    _, history = Problem().gathers(sparse=False)
    leaves, spec = pytree.tree_flatten(history)
    again = pytree.tree_unflatten(leaves, spec)
    assert torch.equal(again.rows(), history.rows()) and again.sparse is False and len(again) == len(LENGTHS)


def test_compiled_without_graph_break_with_dense_gradients(backend, device):
    problem = Problem(torch.float32)

    def call(query, history):
        return dk.local_activation(query, history, problem.weights, problem.biases)

    query, history = problem.gathers(sparse=False)
    with dk.use_backend(backend):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        same([compiled(query, history)], [call(query, history)], 1e-6)


def test_under_autocast_tables_stay_as_stored_and_dense_rows_follow_them(backend, device):
    problem = Problem(torch.float32)
    history, query_rows = problem.gathers()[1], problem.copied()[0]
    with dk.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        assert (
            dk.local_activation(query_rows.bfloat16(), history, problem.weights, problem.biases).dtype == torch.float32
        )


def test_under_autocast_dense_rows_are_lowered_and_weights_are_not(backend, device):
    problem = Problem(torch.float32)
    query, history = problem.copied()
    lowered = dk.Jagged(history.values.bfloat16(), history.offsets)
    with dk.use_backend(backend):
        expected = dk.local_activation(query.bfloat16(), lowered, problem.weights, problem.biases)
        with torch.autocast("cpu", torch.bfloat16):
            ours = dk.local_activation(query, history, problem.weights, problem.biases)
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, expected)


BAD = {
    "ids outside the table": (
        dict(ids=[torch.tensor([0, 50]), torch.tensor([0, 1])]),
        IndexError,
        r"ids\[0\] .*0\.\.49",
    ),
    "negative ids": (dict(ids=[torch.tensor([0, 1]), torch.tensor([0, -1])]), IndexError, r"ids\[1\] .*-1"),
    "ids of several lengths": (dict(ids=[torch.tensor([0]), torch.tensor([0, 1])]), ValueError, r"ids\[1\] .*shape"),
    "one id tensor too few": (dict(ids=[torch.tensor([0])]), ValueError, "ids must hold one tensor per table"),
    "float ids": (dict(ids=[torch.ones(2), torch.tensor([0, 1])]), TypeError, r"ids\[0\] must be int64 or int32"),
    "offsets that end elsewhere": (dict(offsets=torch.tensor([0, 1])), ValueError, "offsets must end"),
    "tables of two dtypes": (dict(tables=[torch.ones(50, 2), torch.ones(9, 2).double()]), TypeError, r"tables\[1\]"),
    "a table that is a vector": (
        dict(tables=[torch.ones(50), torch.ones(9, 2)]),
        ValueError,
        r"tables\[0\] .*\[V, D\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    changes, error, message = BAD[case]
    good = {"ids": [torch.tensor([3, 4]), torch.tensor([0, 1])], "tables": [torch.ones(50, 2), torch.ones(9, 3)]}
    with pytest.raises(error, match=message):
        dk.Gather(**(good | changes))


def test_offsets_belong_to_the_history_alone():
    query, history = Problem().gathers()
    problem = Problem()
    with pytest.raises(ValueError, match="query must be a Gather without offsets"):
        dk.local_activation(history, history, problem.weights, problem.biases)
    with pytest.raises(ValueError, match="history must be a Gather with offsets"):
        dk.local_activation(query, query, problem.weights, problem.biases)
