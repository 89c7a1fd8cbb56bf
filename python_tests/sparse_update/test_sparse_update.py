"""Claims about `sparse_update`: the paper's update on the rows of the batch, no other row, whatever the threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from support.bounds import holds
from support.isas import results_of_every_isa

import din_kernels as dk
from din_kernels.backends.calls import SparseUpdateCall
from din_kernels.ops.sparse_update import RULES, Hyper, Table, sparse_update
from din_kernels.verification import FLOOR, Deviation

pytestmark = pytest.mark.usefixtures("uninitialized_memory_is_nan")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HYPER = Hyper(lr=0.1, step=0.07, beta1=0.9, beta2=0.95, eps=1e-8, coeff=0.3)
ROWS = 61


def make(
    rule,
    dtype=torch.float64,
    dim=19,
    entries=230,
    index=torch.int64,
    hyper=HYPER,
    counts=True,
    padding_idx=None,
    seed=0,
):
    """A table whose ids are skewed, as in a batch: id 3 is in half of the entries, others never."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = torch.promote_types(dtype, torch.float32)
    ids = torch.randint(0, ROWS - 5, (entries,), generator=generator)
    ids[torch.rand(entries, generator=generator) < 0.5] = 3
    shapes = {"VD": (ROWS, dim), "V": (ROWS,)}
    return Table(
        normal(ROWS, dim).to(dtype),
        [normal(*shapes[shape]).square().to(wide) for shape in RULES[rule]],
        ids.to(index),
        normal(entries, dim).to(dtype),
        hyper,
        torch.randint(0, 9, (ROWS,), generator=generator) if counts else None,
        padding_idx,
    )


def copy_of(table: Table, dtype=None) -> Table:
    states = [state.clone() if dtype is None else state.to(dtype) for state in table.states]
    kind = table.weight.dtype if dtype is None else dtype
    return table._replace(weight=table.weight.to(kind, copy=True), states=states, grads=table.grads.to(kind))


def updated(table: Table, rule: str, backend: str, steps: int = 2, dtype=None) -> list[torch.Tensor]:
    """Weight and states after some steps, the input left alone."""
    table = copy_of(table, dtype)
    with dk.use_backend(backend):
        for _ in range(steps):
            sparse_update([table], rule)
    return [table.weight, *table.states]


def deviations(table: Table, rule: str) -> Iterator[Deviation]:
    """Errors against float64; the bound is twice the reference's own error, plus the stated floor."""
    ours, own = updated(table, rule, "cpu"), updated(table, rule, "reference")
    exact = updated(table, rule, "reference", dtype=torch.float64)
    for at, (got, theirs, right) in enumerate(zip(ours, own, exact, strict=True)):
        assert got.dtype == theirs.dtype
        bound = 2 * (theirs.double() - right).abs().max().item() + FLOOR[got.dtype] * right.abs().max().item()
        yield Deviation(f"tensor {at}", (got.double() - right).abs().max().item(), bound)


def assert_as_reference(table: Table, rule: str) -> None:
    holds(deviations(table, rule))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_kernel_equals_reference(rule, dtype):
    for dim, index in ((19, torch.int64), (64, torch.int32), (1, torch.int64), (150, torch.int64)):
        assert_as_reference(make(rule, dtype, dim, index=index), rule)
    for changes in ({"maximize": True}, {"decoupled": True}, {"coeff": 0.0}, {"maximize": True, "decoupled": True}):
        assert_as_reference(make(rule, dtype, hyper=HYPER._replace(**changes), padding_idx=3), rule)
    assert_as_reference(make(rule, dtype, counts=False), rule)


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_more_entries_than_a_block_equal_reference(rule):
    for entries in (1, 511, 512, 513, 1500, 9001):
        assert_as_reference(make(rule, torch.float32, 33, entries), rule)
    alone = make(rule, torch.float32, 33, 2100)
    assert_as_reference(alone._replace(ids=torch.full_like(alone.ids, ROWS - 1)), rule)


@pytest.mark.parametrize("rule", RULES)
def test_rows_outside_the_batch_and_the_padding_row_keep_every_bit(rule):
    for dtype, backend in itertools.product(DTYPES, ("cpu", "reference")):
        table = make(rule, dtype, padding_idx=3)
        stay = torch.ones(ROWS, dtype=torch.bool)
        stay[table.ids] = False
        stay[3] = True
        assert 2 <= stay.sum() < ROWS
        for before, after in zip([table.weight, *table.states], updated(table, rule, backend), strict=True):
            assert torch.equal(before[stay], after[stay])
            assert (before[~stay] != after[~stay]).any()


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_step_is_the_papers_update(dtype, relative):
    """w_j <- w_j - lr (dL/dw_j + lambda w_j / n_j) for the ids of the batch, each once; n_j = 0 counts as 1."""
    table = make("sgd", dtype, hyper=Hyper(lr=0.1, step=0.1, coeff=0.3))
    expected = table.weight.double().clone()
    for j in set(table.ids.tolist()):
        gradient = table.grads.double()[table.ids == j].sum(0)
        expected[j] -= 0.1 * (gradient + 0.3 * expected[j] / max(int(table.counts[j]), 1))
    got = updated(table, "sgd", "cpu", steps=1)[0].double()
    assert ((got - expected).norm() / expected.norm()).item() <= relative


@pytest.mark.parametrize("count_dtype", [torch.int32, torch.int64, torch.float32, torch.float64, torch.int16])
def test_counts_of_any_type_give_the_same_step(count_dtype):
    table = make("sgd")
    expected = updated(table, "sgd", "cpu")[0]
    assert torch.equal(updated(table._replace(counts=table.counts.to(count_dtype)), "sgd", "cpu")[0], expected)


@pytest.mark.parametrize("rule", RULES)
def test_results_do_not_depend_on_the_number_of_threads_bit_for_bit(rule):
    before, results = torch.get_num_threads(), {}
    table = make(rule, torch.float32, 64, 40_000)
    try:
        for threads in (1, 2, 4, 7):
            torch.set_num_threads(threads)
            results[threads] = updated(table, rule, "cpu")
    finally:
        torch.set_num_threads(before)
    for threads in (2, 4, 7):
        assert all(torch.equal(a, b) for a, b in zip(results[1], results[threads], strict=True))


def test_order_of_the_batch_changes_nothing_but_rounding():
    table = make("adagrad")
    order = torch.randperm(len(table.ids), generator=torch.Generator().manual_seed(1))
    shuffled = table._replace(ids=table.ids[order], grads=table.grads[order])
    for a, b in zip(updated(table, "adagrad", "cpu"), updated(shuffled, "adagrad", "cpu"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_many_rows_sort_as_few_do():
    """Ids beyond one digit of the sort, and the largest that a table of 3,000,000 rows has."""
    rows, generator = 3_000_000, torch.Generator().manual_seed(0)
    ids = torch.randint(0, rows, (5000,), generator=generator)
    ids[::7], ids[1] = rows - 1, 0
    grads = torch.randn(5000, 2, generator=generator)
    table = Table(torch.zeros(rows, 2), [], ids, grads, Hyper(lr=1.0, step=1.0))
    with dk.use_backend("cpu"):
        sparse_update([table], "sgd")
    torch.testing.assert_close(table.weight, torch.zeros(rows, 2).index_add_(0, ids, grads, alpha=-1))


def test_several_tables_in_one_call_are_updated_as_one_by_one():
    tables = [make("adam", dim=dim, seed=dim) for dim in (3, 8, 20)]
    expected = [updated(table, "adam", "cpu", steps=1) for table in tables]
    together = [copy_of(table) for table in tables]
    with dk.use_backend("cpu"):
        sparse_update(together, "adam")
    for table, right in zip(together, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip([table.weight, *table.states], right, strict=True))


def test_no_ids_or_no_columns_change_nothing():
    for table in (make("adagrad", entries=0), make("adagrad", dim=0)):
        for before, after in zip([table.weight, *table.states], updated(table, "adagrad", "cpu"), strict=True):
            assert torch.equal(before, after)


def test_strided_ids_and_gradients_are_read_right_and_a_strided_table_is_the_references():
    table = make("adagrad")
    strided = table._replace(
        ids=torch.stack([table.ids, table.ids + 1], 1)[:, 0], grads=table.grads.t().contiguous().t()
    )
    expected = updated(table, "adagrad", "cpu")
    for a, b in zip(updated(strided, "adagrad", "cpu"), expected, strict=True):
        assert torch.equal(a, b)
    columns = copy_of(table)
    columns = columns._replace(weight=columns.weight.t().contiguous().t())
    with pytest.raises(dk.BackendError, match="weight and states must be contiguous"), dk.use_backend("cpu"):
        sparse_update([columns], "adagrad")
    sparse_update([columns], "adagrad")  # by the reference
    torch.testing.assert_close(columns.weight, updated(table, "adagrad", "reference", steps=1)[0])


def test_nan_in_one_row_stays_in_that_row():
    table = make("adagrad", torch.float32)
    broken = copy_of(table)
    broken.grads[int((table.ids == 7).nonzero()[0])] = torch.nan
    right, got = updated(table, "adagrad", "cpu")[0], updated(broken, "adagrad", "cpu")[0]
    assert got[7].isnan().all()
    others = torch.arange(ROWS) != 7
    assert torch.equal(got[others], right[others])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ids": torch.tensor([0, ROWS])}, IndexError, r"ids of table 1 must lie in 0..60 .*, got 0..61"),
        ({"ids": torch.tensor([-1, 2])}, IndexError, r"got -1..2"),
        ({"ids": torch.tensor([0.0, 1.0])}, TypeError, "ids of table 1 must be int64 or int32, got torch.float32"),
        ({"grads": torch.zeros(2, 5).double()}, ValueError, r"grads of table 1 must have shape \[2, 19\]"),
        ({"grads": torch.zeros(2, 19)}, TypeError, "grads of table 1 must have the dtype of weight"),
        ({"counts": torch.zeros(3)}, ValueError, r"counts of table 1 must have shape \[61\]"),
        ({"states": []}, ValueError, "states of table 1 must be 1 for rule='adagrad', got 0"),
        ({"states": [torch.zeros(ROWS)]}, ValueError, r"states of table 1 must have shape \[61, 19\]"),
        ({"states": [torch.zeros(ROWS, 19)]}, TypeError, "states of table 1 must have dtype torch.float64"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_wrong_input_is_named_and_nothing_is_written(changes, error, message, backend):
    good, bad = make("adagrad"), make("adagrad", entries=2, counts=False)._replace(**changes)
    before = [tensor.clone() for tensor in (good.weight, *good.states)]
    with pytest.raises(error, match=message), dk.use_backend(backend):
        sparse_update([good, bad], "adagrad")
    assert all(torch.equal(a, b) for a, b in zip(before, (good.weight, *good.states), strict=True))


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match="rule must be one of 'sgd', .* got 'lamb'"):
        sparse_update([], "lamb")


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_op_passes_opcheck(rule):
    table = make(rule, torch.float32)
    arguments = (*SparseUpdateCall.of([table], rule), "cpu")
    torch.library.opcheck(torch.ops.din_kernels.sparse_update.default, arguments)


def test_a_call_gives_back_the_tables_that_it_was_made_of():
    tables = [make("adam", torch.float32, seed=seed, hyper=HYPER._replace(step=0.5 + seed)) for seed in range(3)]
    tables[1] = tables[1]._replace(counts=None, padding_idx=2)
    call = SparseUpdateCall.of(tables, "adam")
    for found, given in zip(call.tables(), tables, strict=True):
        assert found.weight is given.weight and found.ids is given.ids and found.counts is given.counts
        assert [id(state) for state in found.states] == [id(state) for state in given.states]
        assert found.hyper == given.hyper
        assert found.padding_idx == (-1 if given.padding_idx is None else given.padding_idx)


def test_autograd_notices_that_the_weight_changed():
    table = make("sgd")
    weight = torch.nn.Parameter(table.weight)
    loss = weight.square().sum()
    sparse_update([table._replace(weight=weight)], "sgd")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_every_isa_gives_the_same_update_to_rounding(tmp_path):
    script = """
from test_sparse_update import DTYPES, RULES, make, updated
cases = [(rule, dtype) for rule in RULES for dtype in DTYPES]
found = {case: updated(make(*case, 37), case[0], "cpu") for case in cases}
"""
    found = results_of_every_isa(script, __file__, tmp_path)
    for results in found.values():
        for case, tensors in results.items():
            for a, b in zip(tensors, found["baseline"][case], strict=True):
                torch.testing.assert_close(a, b, msg=str(case))
