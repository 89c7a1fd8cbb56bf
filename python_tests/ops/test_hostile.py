"""Hostile calls of every public entry point: each gives the right result, or is refused by the argument's name."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from support.cuda_backend import device_of
from support.hostile import on_meta
from support.hostile_backends import COMPUTING, difference, outcome
from support.hostile_calls import CALLS, hostile, told

import din_kernels as dk
from din_kernels import config
from din_kernels.ops.sparse_update import Hyper, Table, sparse_update

CALLS_IN_ALL = 2000
REFUSALS = (TypeError, ValueError, IndexError, dk.BackendError)


def flat(value) -> list:
    """Nested lists as one list of float64 arrays, numbers and None."""
    if isinstance(value, (list, tuple)):
        return [each for part in value for each in flat(part)]
    if isinstance(value, torch.Tensor):
        real = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
        return [real.double().as_subclass(torch.Tensor).numpy()]
    return [value if value is None else np.asarray(value, dtype=np.float64)]


def same(got, expected) -> bool:
    got, expected = flat(got), flat(expected)
    if len(got) != len(expected):
        return False
    for each, right in zip(got, expected, strict=True):
        if each is None or right is None:
            if each is not right:
                return False
        elif each.shape != right.shape or not np.allclose(each, right, rtol=2e-3, atol=2e-3, equal_nan=True):
            return False
    return True


def fault(name: str, seed: int) -> str | None:
    """What is wrong with the answer to a hostile call, or None."""
    given, changes = hostile(name, seed)
    made = told(name, seed)
    try:
        expected = CALLS[name].expected(given)
    except Exception as illegal:
        expected = illegal
    try:
        got = CALLS[name].run(given)
    except REFUSALS as refused:
        message = str(refused)
        named = any(re.search(rf"\b{re.escape(argument)}\b", message) for argument in changes)
        return None if named and worded(message) else f"{made}: {type(refused).__name__}: {message}"
    except Exception as error:
        return f"{made}: {type(error).__name__}: {error}"
    if isinstance(expected, Exception):
        return f"{made}: accepted, and the oracle says {type(expected).__name__}: {expected}"
    return None if same(got, expected) else f"{made}: got {got}, expected {expected}"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_a_valid_call_gives_the_independent_result(name):
    for seed in range(8):
        given = CALLS[name].arguments(np.random.default_rng(seed))
        expected = CALLS[name].expected(given)
        assert same(CALLS[name].run(given), expected)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_call_is_right_or_refused_by_name(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults = [fault(name, seed) for seed in range(-(-CALLS_IN_ALL // len(CALLS)))]
    wrong = [each for each in faults if each is not None]
    assert not wrong, f"{len(wrong)} of {len(faults)}:\n" + "\n".join(wrong)


def worded(message: str) -> bool:
    """Whether it says what was expected and what came."""
    return re.search(r"\b(must|needs?|belong|exclude)\b.*\b(got|is an?)\b", message, re.DOTALL) is not None


def sizes(results) -> list:
    """The sizes of all tensors in a row; entry points that only hold values give them in place of those on meta."""
    return [size for each in results for size in getattr(each, "shape", [each])]


def dtypes(tensors) -> list:
    return [each.dtype for each in tensors if isinstance(each, torch.Tensor)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_a_call_on_the_meta_device_gives_the_right_shapes_or_is_refused_by_name(name):
    for seed in range(8):
        given = CALLS[name].arguments(np.random.default_rng(seed))
        on_cpu = outcome(name, CALLS[name].arguments(np.random.default_rng(seed)), None)
        got = outcome(name, on_meta(given), None)
        if got.refusal is None:
            assert sizes(got.results) == sizes(on_cpu.results)
            assert sizes(got.gradients) == sizes(on_cpu.gradients) and dtypes(got.gradients) == dtypes(on_cpu.gradients)
            assert len(got.results) != len(on_cpu.results) or dtypes(got.results) == dtypes(on_cpu.results)
        else:
            assert worded(str(got.refusal)) and "meta" in str(got.refusal), got.refusal


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_call_on_the_meta_device_is_refused_by_name_or_served(name):
    for seed in range(60):
        given = hostile(name, seed)[0]
        try:
            given = on_meta(given)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            continue  # torch has no such tensor there
        got = outcome(name, given, None)
        assert got.refusal is None or worded(str(got.refusal)), f"{told(name, seed)}: {got.refusal}"


@pytest.mark.parametrize("options", [{}, {"activation": "dice"}, {"features": "outer", "normalize": "softmax"}])
def test_a_unit_on_the_meta_device_trains_on_shapes(options):
    with torch.device("meta"):
        unit = dk.nn.LocalActivationUnit(3, (4,), **options)
        history = dk.Jagged(torch.ones(5, 3, requires_grad=True), torch.zeros(3, dtype=torch.int64))
        query, user = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
        pooled, weights = unit(query, history, query_to_user=user, return_weights=True, total_pairs=9)
    assert pooled.shape == (4, 3) and weights.values.shape == (9,) and pooled.device.type == "meta"
    pooled.sum().backward()
    assert history.values.grad.shape == (5, 3) and all(each.grad is not None for each in unit.parameters())
    with pytest.raises(ValueError, match="total_pairs must be given where lengths have no values .* got None"):
        unit(query, history, query_to_user=user, return_weights=True)
    unit.linears[0].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="query must have values .* got the meta device"):
        unit(query, history, query_to_user=user)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_model_on_the_meta_device_trains_on_shapes(sparse):
    given = CALLS["DINConfig"].arguments(None) | {"sparse": sparse}
    model = dk.models.DIN(dk.models.DINConfig(**given)).to("meta")
    logits = model(on_meta(CALLS["DIN"].arguments(None)))
    logits.sum().backward()
    assert logits.shape == (3,) and logits.device.type == "meta"
    tables = [each.weight for each in model.embeddings.values()]
    assert all(each.grad.shape == each.shape and each.grad.is_sparse == sparse for each in tables)
    if sparse:
        dk.optim.SparseAdagrad(tables).step()


@pytest.fixture(params=["reference", "cpu", "cuda", *(["triton"] if config.triton_interprets() else [])])
def forced(request, monkeypatch) -> str:
    """Every backend that takes CPU tensors: CUDA on its emulation, Triton where its interpreter was asked for."""
    if request.param == "cuda":
        device_of("emulated", monkeypatch)
    return request.param


@pytest.mark.parametrize("name", COMPUTING)
@pytest.mark.parametrize("calls", [15, pytest.param(300, marks=pytest.mark.full)])
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_call_has_the_same_outcome_under_every_backend(calls, name, forced):
    found = [difference(name, seed, forced, mild) for seed in range(calls) for mild in (False, True)]
    wrong = [each for each in found if each is not None]
    assert not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong)
    assert any(outcome(name, hostile(name, seed, mild=True)[0], forced).refusal is None for seed in range(calls))


def test_entry_points_that_compute_by_no_backend_give_the_same_whatever_is_forced():
    with dk.use_backend("cuda"):  # without its emulation it serves nothing here
        for name in CALLS:
            got = outcome(name, CALLS[name].arguments(np.random.default_rng(0)), None)
            assert isinstance(got.refusal, dk.BackendError) == (name in COMPUTING), (name, got)


def _with_gradients(make, **changes):
    """The gradients of a call on tensors that `make` passes through, as one list."""
    torch.manual_seed(0)
    given = {name: make(tensor) for name, tensor in changes.items()}
    weights = [torch.randn(4, 12, requires_grad=True), torch.randn(1, 4, requires_grad=True)]
    alpha, table = torch.zeros(3, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    history = dk.Jagged(given["values"], given["offsets"])
    pooled = dk.local_activation(given["query"], history, weights, [given["bias"], given["bias"][:1]])
    y = dk.dice(given["values"], alpha, training=True, mask=given["mask"])[0]
    penalty = dk.mba_penalty(table, given["ids"], given["counts"], 0.1)
    (pooled.square().sum() + y.square().sum() + penalty).backward()
    return [*(each.grad for each in weights), alpha.grad, table.grad]


def test_inference_tensors_give_the_gradients_of_plain_ones(forced):
    def frozen(tensor):
        with torch.inference_mode():
            return tensor.clone()

    given = {
        "query": torch.ones(2, 3),
        "values": torch.arange(15.0).view(5, 3) / 9,
        "offsets": torch.tensor([0, 2, 5]),
        "bias": torch.ones(4),
        "mask": torch.tensor([True, True, False, True, True]),
        "ids": torch.tensor([0, 3, 3]),
        "counts": torch.tensor([1, 2, 3, 4]),
    }
    with dk.use_backend(forced):
        found = zip(_with_gradients(frozen, **given), _with_gradients(lambda t: t, **given), strict=True)
    for got, expected in found:
        assert torch.equal(got, expected) and expected.any()


def test_a_zero_tensor_of_indices_is_refused():
    zeros = torch._efficientzerotensor((2,), dtype=torch.int64)
    with pytest.raises(TypeError, match="offsets must have its numbers in memory, got one of torch's zero tensors"):
        dk.Jagged(torch.ones(0, 3), zeros)


def test_an_inference_tensor_is_refused_where_it_would_be_written(forced):
    with torch.inference_mode():
        weight = torch.ones(3, 2)
    table = Table(weight, [], torch.tensor([1]), torch.ones(1, 2), Hyper(lr=0.1, step=0.1))
    words = "weight of table 0 must not be an inference tensor where it is written outside of inference mode, got one"
    with dk.use_backend(forced), pytest.raises(TypeError, match=words):
        sparse_update([table], "sgd")
    assert torch.equal(weight, torch.ones(3, 2))


@pytest.mark.parametrize(
    "counts",
    [
        torch.tensor([4.0]).expand(3),
        torch._neg_view(torch.tensor([-1.0, -4.0, -2.0])),
        torch._efficientzerotensor((3,), dtype=torch.float32),
        torch.tensor([1.0, 4.0, 2.0], requires_grad=True),
    ],
    ids=["expanded", "negated", "zero tensor", "with gradient"],
)
def test_counts_count_by_their_values_however_they_lie_in_memory(counts, forced):
    """w -= lr * coeff * w / n_j for the one row of the batch, and a penalty of coeff / 2 * ||w_j||^2 / n_j."""
    table = Table(torch.ones(3, 2), [], torch.tensor([1]), torch.zeros(1, 2), Hyper(1.0, 1.0, coeff=2.0), counts)
    n = max(1.0, counts.detach()[1].item())
    weight = torch.ones(3, 2, requires_grad=True)
    with dk.use_backend(forced):
        sparse_update([table], "sgd")
        penalty = dk.mba_penalty(weight, torch.tensor([1]), counts, 2.0)
        penalty.backward()
    expected = torch.tensor([[0.0, 0.0], [2 / n, 2 / n], [0.0, 0.0]])
    assert torch.equal(table.weight, 1 - expected) and torch.equal(weight.grad, expected)
    assert penalty.item() == 2 / n and counts.grad is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float64, torch.uint8], ids=str)
def test_an_id_that_the_counted_data_never_held_is_regularized_as_if_it_had_one_sample(dtype, forced):
    """Penalty and step of ids with n_j = 0, 1 and 4: w -= lr * coeff * w / max(n_j, 1)."""
    counts, ids = torch.tensor([0, 1, 4, 7], dtype=dtype), torch.tensor([0, 1, 2])
    weight = torch.ones(4, 2, requires_grad=True)
    table = torch.nn.Parameter(torch.ones(4, 2))
    table.grad = torch.sparse_coo_tensor(ids[None], torch.zeros(3, 2), (4, 2))
    with dk.use_backend(forced):
        dk.mba_penalty(weight, ids, counts, 0.5).backward()
        dk.optim.SparseSGD([table], lr=1.0, mba=dk.MBA(0.5, counts)).step()
    expected = torch.tensor([0.5, 0.5, 0.125, 0.0])[:, None].expand(4, 2)
    assert torch.equal(weight.grad, expected) and torch.equal(table.detach(), 1 - expected)


@pytest.mark.parametrize("count", [-1.0, torch.nan])
def test_a_count_that_is_none_is_refused_under_every_backend_and_nothing_is_written(count, forced):
    counts, ids = torch.tensor([count, 1.0]), torch.tensor([0])
    table = Table(torch.ones(2, 2), [], ids, torch.ones(1, 2), Hyper(1.0, 1.0, coeff=0.5), counts)
    for call in (
        lambda: dk.mba_penalty(torch.ones(2, 2), ids, counts, 0.5),
        lambda: sparse_update([table], "sgd"),
        lambda: dk.MBA(0.5, counts),
    ):
        with dk.use_backend(forced), pytest.raises(ValueError, match="counts.* must be at least 0.*got"):
            call()
    assert torch.equal(table.weight, torch.ones(2, 2))


def test_a_weight_that_is_not_finite_leaves_states_of_finite_gradients_finite(forced):
    """Without a regularizer, and with one that is decoupled, an accumulator holds squares of the gradient alone."""
    for decoupled, counts in ((False, None), (True, torch.ones(3))):
        weight = torch.tensor([[1.0, 1.0], [torch.inf, torch.nan], [1.0, 1.0]])
        table = Table(weight, [torch.zeros(3, 2)], torch.tensor([1]), torch.full((1, 2), 2.0), Hyper(0.1, 0.1), counts)
        table = table._replace(hyper=table.hyper._replace(coeff=0.5, decoupled=decoupled))
        with dk.use_backend(forced):
            sparse_update([table], "adagrad")
        assert table.states[0].tolist() == [[0, 0], [4, 4], [0, 0]]
        assert not weight[1].isfinite().any() and weight[[0, 2]].eq(1).all()
