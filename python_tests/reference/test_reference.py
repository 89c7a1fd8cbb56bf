"""The reference, which everything else is held to, is itself held to a NumPy oracle written from the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import oracle

import din_kernels as dk
from din_kernels.ops.local_activation import FEATURES, NORMALIZATIONS
from din_kernels.ops.sparse_update import RULES, Hyper, Table, sparse_update
from din_kernels.verification import ACTIVATION_CASES, make_case, results

OPTIONS = [(f, a, n) for f in FEATURES for a in ACTIVATION_CASES for n in NORMALIZATIONS]


@pytest.fixture(autouse=True)
def reference():
    with dk.use_backend("reference"):
        yield


def numpy(value):
    if isinstance(value, dict):
        return {key: numpy(each) for key, each in value.items()}
    return value.detach().numpy() if isinstance(value, torch.Tensor) else value


def case_of(features, activation, normalize, **sizes):
    return make_case(features, activation, normalize, "query_to_user", dim=5, **sizes)


def unit_of(case) -> oracle.Unit:
    user = np.arange(len(case.query)) if case.query_to_user is None else case.query_to_user.numpy()
    lengths = case.shape["offsets"].diff().tolist()
    return oracle.Unit(
        case.query.numpy(),
        [each.numpy() for each in case.history.split(lengths)],
        [weight.numpy() for weight in case.weights],
        [bias.numpy() for bias in case.biases],
        [numpy(params) for params in case.params],
        case.features,
        case.activation,
        case.normalize,
        case.scale,
        user,
    )


def towards(shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(ours, expected):
    np.testing.assert_allclose(numpy(ours), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("hidden", [(), (6,), (7, 4), (5, 4, 3)])
@pytest.mark.parametrize(("features", "activation", "normalize"), OPTIONS)
def test_unit_and_every_gradient_equal_the_formulas(features, activation, normalize, hidden):
    case = case_of(features, activation, normalize, hidden=hidden, lengths=(0, 1, 4, 2, 0, 7))
    unit = unit_of(case)
    pooled, weights = unit.forward()
    # `results` differentiates this linear function of both outputs.
    generator = torch.Generator().manual_seed(1)
    g, gw = (torch.randn(each.shape, generator=generator, dtype=torch.float64).numpy() for each in (pooled, weights))
    query, histories, layers, biases, params = unit.backward(g, gw)
    expected = {"pooled": pooled, "weights": weights, "grad query": query, "grad history": np.concatenate(histories)}
    for layer, (weight, bias) in enumerate(zip(layers, biases, strict=True)):
        expected |= {f"grad weights[{layer}]": weight, f"grad biases[{layer}]": bias}
    name = {"prelu": "slope", "dice": "alpha", "dice in training": "alpha"}.get(activation)
    expected |= {f"grad {name}[{layer}]": grad for layer, grad in enumerate(params) if name}
    found = results(case, "reference", torch.float64)
    assert found.keys() == expected.keys()
    for key in expected:
        close(found[key], expected[key])


@pytest.mark.parametrize("features", FEATURES)
def test_folded_first_layer_equals_the_literal_features(features):
    case = case_of(features, "identity", "none")
    q, k, W1, b1 = (each.numpy() for each in (case.query[0], case.history[0], case.weights[0], case.biases[0]))
    A, c = oracle.fold(q, W1, b1, features)
    close(A @ k + c, W1 @ oracle.phi(q, k, features) + b1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 33])
def test_dice_and_its_gradients_equal_the_formulas(rows, training):
    s, dy = towards((rows, 4)), towards((rows, 4), 2).numpy()
    alpha, mean, var = towards(4, 3), towards(4, 4), towards(4, 5).square()
    s.requires_grad_(), alpha.requires_grad_()
    y, used_mean, used_var, count = dk.dice(s, alpha, mean, var, training=training)
    arguments = (numpy(alpha), numpy(mean), numpy(var), 1e-8, training)
    expected, expected_mean, expected_var = oracle.dice(numpy(s), *arguments)
    close(y, expected)
    close(used_mean, expected_mean)
    close(used_var, expected_var)
    assert int(count) == rows
    if rows == 1 and training:
        return  # variance 0: 1 / sqrt(eps) = 1e4 scales rounding errors of a gradient that is 0
    grads = torch.autograd.grad(y, [s, alpha], torch.from_numpy(dy))
    ds, dalpha = oracle.dice_backward(dy, numpy(s), numpy(alpha), expected_mean, expected_var, 1e-8, training)
    close(grads[0], ds)
    close(grads[1], dalpha)


def test_dice_of_one_row_in_training_is_half_gated():
    s = torch.tensor([[2.0, -3.0]])
    y, *_ = dk.dice(s, torch.tensor([0.0, 0.5]), training=True)
    assert y.tolist() == [[1.0, -2.25]]  # p = 1/2: s (alpha + (1 - alpha) / 2)


def test_mba_penalty_of_a_hand_computed_example():
    # Users 1 and 2 of one table; history {1, 1, 2} with candidates 3 and 1 (a positive and its negative are two
    # samples), history {2} with candidates 2 and 0. Samples: {1, 2, 3}, {1, 2}, {2}, {2, 0}.
    # n_0 = 1, n_1 = 2, n_2 = 4, n_3 = 1; id 4 never appears.
    history = dk.Jagged(torch.tensor([1, 1, 2, 1, 1, 2, 2, 2]), torch.tensor([0, 3, 6, 7, 8]))
    candidates = torch.tensor([3, 1, 2, 0])
    counts = dk.MBACounts.zeros(5)
    counts.observe([history, candidates])
    assert counts.values.tolist() == [1, 2, 4, 1, 0]
    weight = torch.tensor([[1.0, 2], [3, 4], [4, 2], [1, 1], [9, 9]], dtype=torch.float64, requires_grad=True)
    penalty = dk.mba_penalty(weight, torch.tensor([1, 1, 2, 3]), counts.values, coeff=0.5)
    # 0.25 * (25 / 2 + 20 / 4 + 2 / 1) = 4.875; gradients 0.5 * w / n
    assert penalty.item() == 4.875
    penalty.backward()
    assert weight.grad.tolist() == [[0, 0], [0.75, 1], [0.5, 0.25], [0.5, 0.5], [0, 0]]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_mba_penalty_and_its_gradient_equal_the_formula(padding_idx, sparse):
    weight = towards((9, 4)).requires_grad_()
    ids, counts = torch.tensor([[3, 3, 0], [7, 1, 3]]), torch.tensor([4, 1, 5, 2, 9, 9, 9, 0, 1])
    penalty = dk.mba_penalty(weight, ids, counts, 0.3, padding_idx, sparse=sparse)
    expected, expected_grad = oracle.mba_penalty(numpy(weight), ids.numpy(), counts.numpy(), 0.3, padding_idx)
    close(penalty, expected)
    (grad,) = torch.autograd.grad(penalty, weight)
    close(grad.to_dense(), expected_grad)


@pytest.mark.parametrize("change", [{}, {"decoupled": True}, {"maximize": True}, {"coeff": 0.0}])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_sparse_steps_equal_the_formulas(rule, change):
    hyper = Hyper(**({"lr": 0.1, "step": 0.07, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "coeff": 0.2} | change))
    weight = towards((6, 3))
    states = [towards((6, 3) if shape == "VD" else 6, seed).square() for seed, shape in enumerate(RULES[rule])]
    ids, counts = torch.tensor([4, 1, 4, 4, 0, 5]), torch.tensor([2, 3, 1, 1, 7, 0])
    table = Table(weight, states, ids, towards((6, 3), 9), hyper, counts, padding_idx=0)
    arguments = [numpy(each) for each in (ids, table.grads, counts)]
    for _ in range(2):
        expected, expected_states = oracle.sparse_update(
            rule, numpy(weight), [numpy(state) for state in states], *arguments, 0, hyper
        )
        sparse_update([table], rule)
        close(weight, expected)
        for state, wanted in zip(states, expected_states, strict=True):
            close(state, wanted)


def test_mba_gradient_step_is_the_papers_update():
    # w_j <- w_j - lr (dL/dw_j + lambda w_j / n_j), penalty in the loss and fused in the optimizer alike
    counts, ids = torch.tensor([1, 4, 2]), torch.tensor([1, 1])
    start = torch.arange(6.0, dtype=torch.float64).view(3, 2)
    weights = []
    for fused in (False, True):
        table = torch.nn.Embedding.from_pretrained(start.clone(), freeze=False, sparse=fused)
        mba = dk.MBA(0.5, counts) if fused else None
        optimizer = (
            dk.optim.SparseSGD([table.weight], lr=0.1, mba=mba) if fused else torch.optim.SGD([table.weight], 0.1)
        )
        loss = table(ids).sum()
        (loss if fused else loss + dk.mba_penalty(table.weight, ids, counts, 0.5)).backward()
        optimizer.step()
        weights.append(table.weight.detach())
    expected = start.clone()
    expected[1] -= 0.1 * (2 + 0.5 * start[1] / 4)
    for weight in weights:
        close(weight, expected.numpy())
