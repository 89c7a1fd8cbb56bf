"""Claims about `mba_penalty`: the paper's regularizer of the batch's unique ids, and its gradient."""

from __future__ import annotations

import pytest
import torch

import din_kernels as dk
from din_kernels import mba_penalty
from din_kernels.backends.calls import MbaPenaltyCall, MbaPenaltyGrads, MbaPenaltySaved
from din_kernels.verification import FLOOR

pytestmark = pytest.mark.usefixtures("uninitialized_memory_is_nan")

BACKENDS = ("cpu", "reference")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROWS = 41


def make(dtype=torch.float64, dim=19, entries=300, seed=0):
    """weight, ids with duplicates that leave the last rows out, counts with zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.randint(0, ROWS - 4, (entries,), generator=generator)
    return weight, ids, torch.randint(0, 6, (ROWS,), generator=generator)


def by_hand(weight, ids, counts, coeff, padding_idx=None):
    """(coeff / 2) sum of ||w_j||^2 / n_j, and its gradient, row by row."""
    total, grad = 0.0, torch.zeros_like(weight)
    for j in sorted(set(ids.flatten().tolist()) - {padding_idx}):
        n = max(float(counts[j]), 1)
        total += coeff / 2 * float(weight[j].double().square().sum()) / n
        grad[j] = coeff * weight[j] / n
    return total, grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed_example(backend):
    weight = torch.tensor([[9.0, 9.0], [3.0, 4.0], [1.0, 0.0], [2.0, 2.0]], requires_grad=True)
    counts = torch.tensor([1, 5, 2, 0])
    with dk.use_backend(backend):  # ids 1, 2, 3: 25 / 5 + 1 / 2 + 8 / 1 (never counted: 1), times 0.1 / 2
        penalty = mba_penalty(weight, torch.tensor([[1, 2, 1], [1, 3, 0]]), counts, coeff=0.1, padding_idx=0)
    assert penalty.item() == pytest.approx(0.05 * 13.5, rel=1e-6)
    penalty.backward()
    expected = torch.tensor([[0.0, 0.0], [0.06, 0.08], [0.05, 0.0], [0.2, 0.2]])
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_gradient_equal_the_sum_over_unique_ids(dtype, backend, sparse):
    for dim, entries, padding_idx in ((19, 300, None), (64, 700, 3), (1, 5, 2), (130, 1, None)):
        weight, ids, counts = make(dtype, dim, entries)
        expected, grad = by_hand(weight.detach(), ids, counts, 0.7, padding_idx)
        with dk.use_backend(backend):
            penalty = mba_penalty(weight, ids, counts, 0.7, padding_idx, sparse=sparse)
            penalty.backward(torch.tensor(2.0, dtype=penalty.dtype))
        wide = torch.promote_types(dtype, torch.float32)
        assert penalty.dtype == wide
        assert penalty.item() == pytest.approx(expected, rel=10 * FLOOR[wide])
        got = weight.grad.to_dense() if sparse else weight.grad
        assert got.dtype == dtype and weight.grad.is_sparse == sparse
        torch.testing.assert_close(got, 2 * grad)
        assert torch.equal(got == 0, grad == 0)


def test_sparse_gradient_holds_each_unique_row_once_and_is_coalesced():
    weight, ids, counts = make()
    with dk.use_backend("cpu"):
        penalty = mba_penalty(weight, ids, counts, 1.0, padding_idx=3, sparse=True)
    (grad,) = torch.autograd.grad(penalty, weight)
    assert grad.is_coalesced()
    assert grad.indices()[0].tolist() == sorted(set(ids.tolist()) - {3})


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_passes_gradcheck(backend):
    weight, ids, counts = make(dim=3, entries=20)
    with dk.use_backend(backend):
        assert torch.autograd.gradcheck(lambda w: mba_penalty(w, ids, counts, 0.7, 3), (weight,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", ["SparseSGD", "SparseAdagrad", "SparseAdam", "SparseRowWiseAdagrad"])
def test_penalty_in_the_loss_and_mba_in_the_optimizer_take_the_same_steps(rule, dtype):
    weight, _, counts = make(dtype)
    tables = [torch.nn.Embedding.from_pretrained(weight.detach().clone(), False, sparse=True) for _ in range(2)]
    kind = getattr(dk.optim, rule)
    inside = kind([{"params": [tables[0].weight], "mba": dk.MBA(0.5, counts)}], lr=0.1)
    outside = kind(tables[1].parameters(), lr=0.1)
    for step in range(4):
        _, ids, _ = make(seed=step)
        for table, optimizer in zip(tables, (inside, outside), strict=True):
            optimizer.zero_grad()
            loss = table(ids).square().sum() / 100
            if optimizer is outside:
                loss = loss + mba_penalty(table.weight, ids, counts, 0.5, sparse=True)
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=10 * FLOOR[dtype], atol=10 * FLOOR[dtype])


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_ids_come_in_any_shape_or_as_a_jagged(index):
    weight, ids, counts = make()
    ids = ids.to(index)
    expected = mba_penalty(weight, ids, counts, 1.0)
    for given in (ids.view(3, 10, 10), ids.view(3, 100).t(), dk.Jagged(ids, torch.tensor([0, 7, 7, 300]))):
        assert torch.equal(mba_penalty(weight, given, counts, 1.0), expected)


def test_several_tables_add_up():
    cases = [make(dim=dim, seed=dim) for dim in (4, 9)]
    expected = sum(mba_penalty(*case, 0.3) for case in cases)
    torch.testing.assert_close(mba_penalty(*(list(each) for each in zip(*cases, strict=True)), 0.3), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", [torch.empty(0, dtype=torch.int64), torch.tensor([3, 3])])
def test_a_batch_without_ids_but_padding_has_penalty_and_gradient_0(ids, backend):
    weight, _, counts = make()
    for sparse in (False, True):
        weight.grad = None
        with dk.use_backend(backend):
            penalty = mba_penalty(weight, ids, counts, 1.0, padding_idx=3, sparse=sparse)
            penalty.backward()
        assert penalty.item() == 0
        assert (weight.grad.to_dense() == 0).all()


def test_results_do_not_depend_on_the_number_of_threads_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30_000, 17, generator=generator, requires_grad=True)
    ids, counts = torch.randint(0, 30_000, (40_000,), generator=generator), torch.arange(30_000)
    before, results = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 4, 7):
            torch.set_num_threads(threads)
            with dk.use_backend("cpu"):
                penalty = mba_penalty(weight, ids, counts, 0.1)
            results[threads] = [penalty, *torch.autograd.grad(penalty, weight)]
    finally:
        torch.set_num_threads(before)
    for threads in (2, 4, 7):
        assert all(torch.equal(a, b) for a, b in zip(results[1], results[threads], strict=True))


@pytest.mark.parametrize("sparse", [False, True])
def test_op_passes_opcheck(sparse):
    weight, ids, counts = make(torch.float32, dim=5, entries=12)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    if not sparse:  # what traces a backward cannot compare sparse gradients
        tests += ("test_aot_dispatch_dynamic",)
    operator = torch.ops.din_kernels.mba_penalty.default
    torch.library.opcheck(operator, (weight, ids, counts, 0.5, -1, sparse, "cpu"), test_utils=tests)
    _, unique, count = operator(weight, ids, counts, 0.5, -1, sparse, "cpu")
    call = MbaPenaltyCall(weight.detach(), ids, counts, 0.5, -1, sparse)
    arguments = (*MbaPenaltyGrads(torch.tensor(1.0), 12), *call, *MbaPenaltySaved(unique, count), "cpu")
    torch.library.opcheck(torch.ops.din_kernels.mba_penalty_backward.default, arguments)


def test_double_backward_is_refused():
    weight, ids, counts = make()
    with dk.use_backend("cpu"):
        penalty = mba_penalty(weight, ids, counts, 1.0)
    (grad,) = torch.autograd.grad(penalty, weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="mba_penalty has no double backward"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ids": torch.tensor([0, ROWS])}, IndexError, r"ids must lie in 0..40 \(rows of weight\), got 0..41"),
        ({"ids": torch.tensor([-2, 1])}, IndexError, "got -2..1"),
        ({"ids": torch.tensor([0.5])}, TypeError, "ids must be int64 or int32, got torch.float32"),
        ({"counts": torch.ones(3)}, ValueError, r"counts must have shape \[41\] .* got \[3\]"),
        ({"coeff": -1.0}, ValueError, "coeff must be at least 0, got -1.0"),
        ({"weight": torch.ones(3)}, ValueError, r"weight must have shape \[V, D\], got \[3\]"),
        ({"weight": torch.ones(3, 3, dtype=torch.int64)}, TypeError, "weight must have a floating-point dtype"),
        ({"weight": [], "ids": [], "counts": []}, ValueError, "weight must be a tensor or a list of at least one"),
        ({"weight": [torch.ones(3, 3)]}, ValueError, r"ids must be a list with one entry per table \(1\), got Tensor"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_input_is_named(changes, error, message, backend):
    weight, ids, counts = make()
    with pytest.raises(error, match=message), dk.use_backend(backend):
        mba_penalty(**({"weight": weight, "ids": ids, "counts": counts, "coeff": 1.0} | changes))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-4.0, torch.nan])
def test_a_count_that_is_no_count_is_refused_where_the_batch_holds_its_id(bad, backend):
    weight, ids, counts = make()
    counts = counts.double()
    counts[ROWS - 1] = bad  # the batch leaves the last rows out
    with dk.use_backend(backend):
        expected, _ = by_hand(weight.detach(), ids, counts, 0.7)
        assert mba_penalty(weight, ids, counts, 0.7).item() == pytest.approx(expected)
        counts[ids[5]] = bad
        with pytest.raises(ValueError, match="counts must be at least 0 for every id of the batch, got"):
            mba_penalty(weight, ids, counts, 0.7)
