"""Claims about the kernels of the local activation unit, each made of every backend that runs on this machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bounds import holds_where_served
from support.edges import EDGES, LONG_EDGES
from support.large_values import silu_is_torchs
from support.precision import rounding, widest
from support.recorded_ops import opcheck_forward_and_backward, ops_called

import din_kernels as dk
from din_kernels.ops.local_activation import FEATURES, NORMALIZATIONS, feature_width
from din_kernels.options import ACTIVATIONS
from din_kernels.verification import ACTIVATION_CASES, LAYOUTS, deviations, make_case, results

pytestmark = pytest.mark.usefixtures("uninitialized_memory_is_nan")

ALL_EDGES = EDGES | LONG_EDGES


def holds(case, backend, dtype, device):
    holds_where_served(deviations(case, backend, dtype, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATION_CASES)
@pytest.mark.parametrize("features", FEATURES)
def test_outputs_and_all_gradients_equal_the_reference(features, activation, normalize, layout, dtype, backend, device):
    holds(make_case(features, activation, normalize, layout), backend, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("edge", ALL_EDGES)
def test_ragged_edges_equal_the_reference(edge, normalize, layout, dtype, backend, device):
    holds(make_case("concat", "prelu", normalize, layout, **ALL_EDGES[edge]), backend, dtype, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["prelu", "dice in training"])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("features", FEATURES)
def test_half_precision_equals_the_reference(features, normalize, activation, dtype, backend, device):
    holds(make_case(features, activation, normalize, "query_to_user"), backend, dtype, device)


@given(
    lengths=st.lists(st.integers(0, 70), max_size=8),
    dim=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 40), max_size=3),
    features=st.sampled_from(FEATURES),
    # Not Dice in training: the variance of one pair is 0, and 1 / sqrt(eps) = 1e4 scales what rounding leaves of it.
    activation=st.sampled_from([each for each in ACTIVATION_CASES if each != "dice in training"]),
    normalize=st.sampled_from(NORMALIZATIONS),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_shape_equals_the_reference(backend, device, lengths, dim, hidden, **options):
    case = make_case(**options, dim=dim, hidden=tuple(hidden), lengths=tuple(lengths))
    holds(case, backend, torch.float64, device)


# --- layouts ----------------------------------------------------------------------------------------------------------


class Call:
    """Random inputs of one call on a backend, and the call."""

    def __init__(self, backend, device, lengths=(3, 0, 12, 70), dim=6, hidden=(7, 5), dtype=None, seed=0):
        self.backend, self.lengths = backend, torch.tensor(lengths, device=device)
        self.dtype = dtype = dtype or widest(backend)
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape):
            return torch.randn(*shape, generator=generator, dtype=dtype).to(device).requires_grad_()

        widths = [feature_width(dim, "concat"), *hidden, 1]
        self.query, self.values = leaf(len(lengths), dim), leaf(sum(lengths), dim)
        self.weights = [leaf(b, a) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        self.biases = [leaf(b) for b in widths[1:]]

    @property
    def history(self) -> dk.Jagged:
        return dk.Jagged.from_lengths(self.values, self.lengths)

    def leaves(self) -> list[torch.Tensor]:
        return [self.query, self.values, *self.weights, *self.biases]

    def __call__(self, query=None, history=None, **options):
        with dk.use_backend(self.backend):
            return dk.local_activation(
                self.query if query is None else query,
                self.history if history is None else history,
                options.pop("weights", self.weights),
                options.pop("biases", self.biases),
                **options,
            )


@pytest.fixture
def call(backend, device):
    return functools.partial(Call, backend, device)


def padded(jagged: dk.Jagged, side: str, width: int, filling: float):
    return jagged.to_padded(width, filling, side).detach().requires_grad_()


@pytest.mark.parametrize("to_user", [None, [2, 0, 2, 3, 1, 2]])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("layout", ["right", "left", "mask"])
def test_padding_is_never_read_and_the_result_is_that_of_packed_rows(layout, normalize, to_user, call):
    it = call()
    to_user = None if to_user is None else torch.tensor(to_user, device=it.query.device)
    query = it.query if to_user is None else it.query[[0, 1, 2, 3, 0, 1]]
    options = {"normalize": normalize, "query_to_user": to_user, "return_weights": True}
    pooled, weights = it(query, **options)
    width = 75  # no history is that long
    values = padded(it.history, "left" if layout == "left" else "right", width, float("nan"))
    history = dk.Padded(values, it.lengths, padding_side=layout) if layout != "mask" else None
    order = torch.arange(width, device=values.device)
    if layout == "mask":  # any arrangement: the columns shuffled
        order = torch.randperm(width, generator=torch.Generator().manual_seed(0)).to(values.device)
        values = values.detach()[:, order].requires_grad_()
        history = dk.Padded(values, mask=order < it.lengths[:, None])
        # Pooling in another order: equal to rounding.
    padded_pooled, padded_weights = it(query, history, **options)
    exact = rounding(it.dtype) if layout == "mask" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(padded_pooled, pooled, **exact)
    expected = weights.to_padded(width, 0.0, "left" if layout == "left" else "right")[:, order]
    torch.testing.assert_close(padded_weights, expected, **exact)
    assert (padded_weights[expected == 0] == 0).all(), "zeros on padding"
    (grad,) = torch.autograd.grad(pooled.sum() + weights.values.square().sum(), it.values)
    (padded_grad,) = torch.autograd.grad(padded_pooled.sum() + padded_weights.square().sum(), values)
    expected = padded(dk.Jagged(grad, it.history.offsets), "left" if layout == "left" else "right", width, 0.0)
    torch.testing.assert_close(padded_grad, expected[:, order], **rounding(it.dtype))


def test_returned_weights_pool_to_the_result(call):
    it = call()
    to_user = torch.tensor([3, 3, 0, 1], device=it.query.device)
    pooled, weights = it(query_to_user=to_user, return_weights=True)
    assert weights.lengths().tolist() == [70, 70, 3, 0]
    for i, user in enumerate(to_user.tolist()):
        rows = it.values[it.history.offsets[user] : it.history.offsets[user + 1]]
        w = weights.values[weights.offsets[i] : weights.offsets[i + 1]]
        torch.testing.assert_close(pooled[i], w @ rows)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_returning_weights_changes_neither_pooled_nor_its_gradients(normalize, call):
    it = call()
    alone = it(normalize=normalize)
    pooled, _ = it(normalize=normalize, return_weights=True)
    assert torch.equal(alone, pooled)
    grads = [torch.autograd.grad(each.square().sum(), it.leaves()) for each in (alone, pooled)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, **rounding(it.dtype))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_gradients_flow_through_the_returned_weights_alone(normalize, call):
    it, grads = call(), []
    for backend in (it.backend, "reference"):
        it.backend = backend
        _, weights = it(normalize=normalize, return_weights=True)
        grads.append(torch.autograd.grad(weights.values.square().sum(), it.leaves()))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, **rounding(it.dtype))


# --- values at the edge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_empty_history_pools_to_exact_zero_with_zero_gradients(normalize, dtype, call):
    it = call(lengths=(0, 4, 0), dtype=dtype)
    pooled = it(normalize=normalize)
    assert (pooled[[0, 2]] == 0).all() and (pooled[1] != 0).all()
    assert (torch.autograd.grad(pooled[[0, 2]].sum(), it.query, retain_graph=True)[0] == 0).all()
    # Without any behaviour there is no gradient for anything.
    it = call(lengths=(0, 0), dtype=dtype)
    for grad in torch.autograd.grad(it(normalize=normalize).sum(), it.leaves()):
        assert (grad == 0).all()


@pytest.mark.parametrize("lengths", [(3, 0, 8, 2), (3, 0, 70, 12)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_bad_values_of_one_user_touch_only_that_users_candidates(normalize, bad, lengths, call):
    it, results = call(lengths=lengths), []
    to_user = torch.tensor([2, 0, 2, 3], device=it.query.device)
    for value in (None, bad):
        if value is not None:
            it.values.data[it.history.offsets[2] + 1] = value
        pooled = it(normalize=normalize, query_to_user=to_user)
        results.append([pooled, *torch.autograd.grad(pooled.sum(), [it.query, it.values])])
    for clean, spoilt in zip(results[0][:2], results[1][:2], strict=True):
        assert torch.equal(clean[[1, 3]], spoilt[[1, 3]])
        assert not spoilt[[0, 2]].isfinite().all(1).any()
    others = torch.ones(len(it.values), dtype=torch.bool)
    others[it.history.offsets[2] : it.history.offsets[3]] = False
    assert torch.equal(results[0][2][others], results[1][2][others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silu_of_large_and_of_infinite_values_is_torchs(dtype, backend, device):
    silu_is_torchs(backend, dtype, device)


@pytest.mark.parametrize("huge", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_of_huge_scores_neither_overflows_nor_vanishes(dtype, huge, call):
    it = call(lengths=(3, 70, 700), dtype=dtype)
    with torch.no_grad():
        it.biases[-1].fill_(huge)
        shifted, weights = it(normalize="softmax", return_weights=True)
        it.biases[-1].zero_()
        torch.testing.assert_close(
            shifted, it(normalize="softmax"), rtol=1e-2 if dtype == torch.float32 else 1e-9, atol=0.01
        )
        for one in weights.values.split(it.lengths.tolist()):
            assert one.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("huge", [30.0, 1e4])
def test_gradient_of_softmax_is_exact_for_scores_of_any_size(huge, call):
    it = call(lengths=(1, 7, 65), dtype=torch.float32)
    with torch.no_grad():
        it.weights[-1].zero_()
        it.biases[-1].fill_(huge)  # equal scores: every weight is 1 / n
    grad = torch.autograd.grad(it(normalize="softmax").sum(), it.values)[0]
    shares = torch.cat([torch.full((n, grad.shape[1]), 1 / n) for n in it.lengths.tolist()]).to(grad)
    torch.testing.assert_close(grad, shares, rtol=1e-6, atol=0)


def test_softmax_of_one_behaviour_is_that_behaviour_and_its_score_has_no_gradient(call):
    it = call(lengths=(1, 1), dtype=torch.float32)
    pooled = it(normalize="softmax")
    torch.testing.assert_close(pooled, it.values, rtol=0, atol=0)
    for grad in torch.autograd.grad(pooled.square().sum(), [it.query, *it.weights, *it.biases]):
        assert (grad == 0).all()


@pytest.mark.parametrize("backend", ["cpu"])
def test_rows_beyond_2_to_31_elements_are_found(backend, device):
    dim, tail = 64, 100
    rows = 2**31 // dim + tail
    try:  # zero pages: only what is touched takes memory
        values = torch.from_numpy(np.zeros((rows, dim), np.float32))
    except MemoryError:
        pytest.skip("address space for 8.6 GB is needed")
    it = Call(backend, device, lengths=(tail,), dim=dim, dtype=torch.float32)
    values[-tail:] = it.values.detach()
    history = dk.Jagged(values, torch.tensor([0, rows - tail, rows]))
    pooled = it(history=history, query_to_user=torch.tensor([1]))
    torch.testing.assert_close(pooled, it(), rtol=0, atol=0)
    wide = dk.Padded(values.view(1, rows, dim), torch.tensor([tail]), padding_side="left")
    torch.testing.assert_close(it(history=wide), it(), rtol=0, atol=0)
    grads = [torch.autograd.grad(each.sum(), [it.query, *it.weights]) for each in (pooled, it())]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu"])
def test_gradients_of_rows_beyond_2_to_31_elements_are_written(backend, device):
    dim, tail = 512, 100
    rows = 2**31 // dim + tail
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 14e9:
        pytest.skip("14 GB of free memory are needed")
    it = Call(backend, device, lengths=(tail,), dim=dim, hidden=(), dtype=torch.float32)
    values = torch.from_numpy(np.zeros((rows, dim), np.float32))
    values[-tail:] = it.values.detach()
    history = dk.Jagged(values.requires_grad_(), torch.tensor([0, rows - tail, rows]))
    torch.use_deterministic_algorithms(False)  # NaN would be written to all of it first
    (grad,) = torch.autograd.grad(it(history=history, query_to_user=torch.tensor([1])).sum(), values)
    torch.testing.assert_close(grad[-tail:], torch.autograd.grad(it().sum(), it.values)[0], rtol=0, atol=0)
    assert not grad[:-tail:1000].any()


# --- tensors as they come ---------------------------------------------------------------------------------------------


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every second element of a buffer of other ones."""
    buffer = torch.stack([tensor, tensor.flip(0)], -1)
    assert not tensor.numel() > 1 or not buffer[..., 0].is_contiguous()
    return buffer[..., 0]


@pytest.mark.parametrize("layout", ["packed", "right", "left", "mask"])
def test_inputs_need_not_be_contiguous(layout, call):
    it = call(lengths=(3, 1, 5, 2))
    to_user = torch.tensor([2, 0, 3, 2], device=it.query.device)
    rows = it.values if layout == "packed" else it.values.detach().view(1, 11, -1).repeat(4, 1, 1)
    mask = torch.arange(11, device=rows.device) % it.lengths[:, None] == 0

    def run(as_it_comes):
        history = {
            "packed": lambda: dk.Jagged(as_it_comes(rows), as_it_comes(it.history.offsets)),
            "mask": lambda: dk.Padded(as_it_comes(rows), mask=as_it_comes(mask)),
        }.get(layout, lambda: dk.Padded(as_it_comes(rows), as_it_comes(it.lengths), padding_side=layout))()
        leaves = [as_it_comes(each).detach().requires_grad_() for each in (it.query, *it.weights, *it.biases)]
        weights, biases = leaves[1:4], leaves[4:]
        options = {"weights": weights, "biases": biases, "return_weights": True}
        pooled, weights = it(leaves[0], history, query_to_user=as_it_comes(to_user), **options)
        weights = weights.values if layout == "packed" else weights
        # sum() hands an expanded gradient to the backward
        return [pooled, weights, *torch.autograd.grad(pooled.sum() + weights.sum(), leaves)]

    for ours, expected in zip(run(strided), run(lambda each: each), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_lengths_may_be_expanded(call):
    it = call(lengths=(4, 4, 4))
    values = it.values.detach().view(3, 4, -1)
    expanded = dk.Padded(values, torch.tensor([3], device=values.device).expand(3))
    written_out = dk.Padded(values, torch.tensor([3, 3, 3], device=values.device))
    torch.testing.assert_close(it(history=expanded), it(history=written_out), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices_may_be_int32(dtype, call):
    it = call()
    to_user = torch.tensor([2, 0, 2, 3], dtype=dtype, device=it.query.device)
    packed = it(history=dk.Jagged(it.values, it.history.offsets.to(dtype)), query_to_user=to_user)
    torch.testing.assert_close(packed, it(query_to_user=to_user.long()), rtol=0, atol=0)
    values = it.history.to_padded()
    torch.testing.assert_close(it(history=dk.Padded(values, it.lengths.to(dtype))), it(), rtol=0, atol=0)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("layout", ["lengths", "left", "mask"])
def test_padded_statistics_are_those_of_the_whole_batch(layout, normalize, call):
    it, found = call(dtype=torch.float64), []
    values = it.history.to_padded(75).detach().requires_grad_()
    mask = torch.stack([torch.arange(75) < n for n in it.lengths.tolist()]).to(values.device)
    side = "left" if layout == "left" else "right"
    history = dk.Padded(values, mask=strided(mask)) if layout == "mask" else dk.Padded(values, it.lengths, None, side)
    for backend in (it.backend, "reference"):
        it.backend = backend
        alphas = [torch.full((width,), 0.2, dtype=torch.float64, device=values.device) for width in (7, 5)]
        params = [{"alpha": alpha.requires_grad_(), "training": True} for alpha in alphas]
        options = {"activation": "dice", "activation_params": params, "stats": "padded", "normalize": normalize}
        pooled, weights = it(history=history, return_weights=True, **options)
        leaves = [values, it.query, *it.weights, *alphas]
        found.append([pooled, weights, *torch.autograd.grad(pooled.square().sum() + weights.sin().sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_gradients_that_are_asked_for_do_not_depend_on_those_that_are_not(normalize, call):
    it = call()
    expected = torch.autograd.grad(it(normalize=normalize).sum(), it.leaves())
    for wanted in range(len(expected)):
        for i, leaf in enumerate(it.leaves()):
            leaf.requires_grad_(i == wanted)
        (grad,) = torch.autograd.grad(it(normalize=normalize).sum(), it.leaves()[wanted])
        torch.testing.assert_close(grad, expected[wanted], rtol=0, atol=0)


def test_one_element_parameters_stand_for_every_channel(call):
    it = call()

    def results(shape):
        slope = torch.full((shape or 7,), 0.3, dtype=it.dtype, device=it.query.device, requires_grad=True)
        params = [{"slope": slope}, {"slope": slope[:5] if shape is None else slope}]
        pooled = it(activation="prelu", activation_params=params)
        return pooled, torch.autograd.grad(pooled.sum(), slope)[0].sum()

    for one, every in zip(results(1), results(None), strict=True):
        torch.testing.assert_close(one, every)


@pytest.mark.parametrize("single", [("alpha",), ("mean", "var"), ("alpha", "mean", "var")])
def test_each_parameter_of_dice_may_be_one_number_or_one_per_channel(single, call):
    it, found = call(), []
    for backend in (it.backend, "reference"):
        it.backend = backend
        generator = torch.Generator().manual_seed(5)
        params = [
            {
                key: (torch.rand(1 if key in single else width, generator=generator, dtype=torch.float64) + 0.1)
                .to(it.query)
                .requires_grad_()
                for key in ("alpha", "mean", "var")
            }
            for width in (7, 5)
        ]
        pooled = it(activation="dice", activation_params=params)
        leaves = [value for layer in params for value in layer.values()]
        found.append([pooled, *torch.autograd.grad(pooled.sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **rounding(it.dtype))


# --- autograd and the compilers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "prelu", "dice", "dice in training"])
def test_gradcheck_passes_on_the_double_kernel(activation, features, normalize, backend, device):
    case = make_case(features, activation, normalize, "query_to_user", dim=3, hidden=(4, 2), lengths=(2, 0, 11, 1, 3))
    offsets, to_user = case.shape["offsets"].to(device), case.query_to_user.to(device)
    names = ACTIVATIONS[case.activation].given(batch_statistics=activation.endswith("in training"))
    given = [case.query, case.history, *case.weights, *case.biases, *(p[name] for p in case.params for name in names)]
    given = [each.to(device).requires_grad_() for each in given]

    mode = {"training": activation == "dice in training", "eps": 1e-3}

    def function(query, values, w1, w2, w3, b1, b2, b3, *params):
        each = iter(params)
        return dk.local_activation(
            query,
            dk.Jagged(values, offsets),
            [w1, w2, w3],
            [b1, b2, b3],
            features=features,
            activation=case.activation,
            activation_params=[{name: next(each) for name in names} | mode for _ in (0, 1)],
            normalize=normalize,
            scale=0.7,
            query_to_user=to_user,
            return_weights=True,
        )

    def flat(*inputs):
        pooled, weights = function(*inputs)
        return pooled, weights.values

    with dk.use_backend(backend):
        assert torch.autograd.gradcheck(flat, given, fast_mode=True)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_ops_pass_opcheck(normalize, call):
    it = call(lengths=(3, 0, 12))
    opcheck_forward_and_backward(ops_called(lambda: it(normalize=normalize).sum().backward()))


def test_double_backward_is_refused(call):
    it = call()
    (grad,) = torch.autograd.grad(it().square().sum(), it.query, create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward.*use_backend\\('reference'\\)"):
        torch.autograd.grad(grad.sum(), it.query)


def test_vmap_is_refused(call):
    it = call()
    with pytest.raises(NotImplementedError, match="vmap.*query_to_user"):
        torch.func.vmap(it)(torch.stack([it.query, it.query]))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_without_graph_break_gives_the_same_numbers_at_any_size(compiler, backend, device):
    unit = dk.nn.LocalActivationUnit(6, hidden=(7, 5), normalize="softmax", device=device, dtype=widest(backend))
    compiled = torch.compile(unit, fullgraph=True, dynamic=True, backend=compiler)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with dk.use_backend(backend):
        for lengths in ((3, 0, 12, 70), (5, 2), (9, 8, 0, 1, 30)):
            it = Call(backend, device, lengths=lengths)
            outputs = [each(it.query, it.history) for each in (compiled, unit)]
            values = it.history.to_padded().detach()
            outputs += [each(it.query, values, lengths=it.lengths) for each in (compiled, unit)]
            for ours, expected in (outputs[:2], outputs[2:]):
                torch.testing.assert_close(ours, expected, **rounding(it.dtype))
            grads = [torch.autograd.grad(each.sum(), [it.query, it.values, *unit.parameters()]) for each in outputs[:2]]
            for ours, expected in zip(*grads, strict=True):
                torch.testing.assert_close(ours, expected, **rounding(it.dtype))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 2, "one graph per layout"


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_exported_module_gives_the_same_numbers_at_another_size(layout, backend, device):
    unit = dk.nn.LocalActivationUnit(6, hidden=(7, 5), device=device, dtype=widest(backend))
    auto = torch.export.Dim.AUTO

    def arguments(lengths):
        it = Call(backend, device, lengths=lengths)
        if layout == "packed":
            return it.query.detach(), dk.Jagged(it.values.detach(), it.history.offsets)
        return it.query.detach(), it.history.to_padded().detach(), it.lengths

    shapes = [{0: auto}, [{0: auto}, {0: auto}]] if layout == "packed" else [{0: auto}, {0: auto, 1: auto}, {0: auto}]
    with dk.use_backend(backend):
        exported = torch.export.export(unit, arguments((3, 0, 12, 70)), dynamic_shapes=shapes)
        exported = exported.module()
        other = arguments((5, 2, 8))
        torch.testing.assert_close(exported(*other), unit(*other), rtol=0, atol=0)


# --- memory -----------------------------------------------------------------------------------------------------------


def sums() -> list[str]:
    """Sums of all that a few calls return; any uninitialized number in a buffer would show."""
    found = []
    for layout in ("packed", "masked", "query_to_user"):
        for activation in ("dice", "dice in training"):
            for features in ("concat", "outer"):
                case = make_case(features, activation, "softmax", layout, lengths=(0, 1, 7, 3, 0, 33, 1100, 60))
                calculated = results(case, "cpu", torch.float32)
                assert all(value.isfinite().all() for value in calculated.values())
                found += [value.sum().item().hex() for value in calculated.values()]
    return found


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator fills memory when asked to")
def test_buffers_of_the_core_are_written_before_they_are_read():
    # Memory comes as 0xFE, -1.7e38 as float32; buffers above the threshold would come from the system as zeros.
    filled = {"MALLOC_PERTURB_": "1", "MALLOC_MMAP_THRESHOLD_": "33554432"}
    filled["PYTHONPATH"] = str(Path(__file__).parents[1])  # of `support`
    script = f"""
import torch
from test_local_activation import sums
torch.set_num_threads({torch.get_num_threads()})
print(*sums())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env=os.environ | filled,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sums()


def test_results_of_verification_see_a_wrong_gradient(backend, device, monkeypatch):
    from din_kernels import verification

    case = make_case("concat", "sigmoid", "softmax", "packed")
    right = results(case, backend, torch.float64, device)
    wrong = right | {"grad biases[1]": right["grad biases[1]"] * (1 + 1e-6)}
    monkeypatch.setattr(verification, "results", lambda case, name, *_: wrong if name == backend else right)
    assert [each.tensor for each in deviations(case, backend, torch.float64) if not each.ratio <= 1] == [
        "grad biases[1]"
    ]
