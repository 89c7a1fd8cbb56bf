"""Claims about the unit's submodules: what replaces, hooks or prunes them counts, or is refused by name."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import din_kernels as dk
from din_kernels.nn import Dice, LocalActivationUnit

B, T, D = 4, 6, 5
LENGTHS = torch.tensor([3, 0, 6, 1])


def made(activation="sigmoid", **options) -> LocalActivationUnit:
    torch.manual_seed(0)
    return LocalActivationUnit(D, (7, 4), activation, dtype=torch.float64, **options)


def given() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(*shape, D, generator=generator, dtype=torch.float64) for shape in ((B,), (B, T)))


def by_hand(unit: LocalActivationUnit, query: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
    """The paper's equation 3 on the valid pairs, with a call of every submodule."""
    user = torch.arange(B).repeat_interleave(LENGTHS)
    k = torch.cat([rows[:length] for rows, length in zip(history, LENGTHS, strict=True)])
    x = torch.cat([query[user], k, query[user] - k, query[user] * k], -1)
    for linear, activation in zip(unit.linears[:-1], unit.activations, strict=True):
        x = activation(linear(x))
    return torch.zeros_like(query).index_add(0, user, unit.linears[-1](x) * k)


class Scaled(nn.Linear):
    """A layer whose forward is not nn.Linear's."""

    def forward(self, x):
        return 2 * super().forward(x)


def affine_dice(unit):
    torch.manual_seed(2)
    state = {"bn.weight": torch.randn(7), "bn.bias": torch.randn(7), "alpha": torch.randn(7, 1)}
    state |= {"bn.running_mean": torch.randn(7), "bn.running_var": torch.rand(7)}
    unit.activations[0] = Dice.from_deepctr_torch({name: value.double() for name, value in state.items()})


def replaced_forward(unit):
    original = unit.linears[0].forward
    unit.linears[0].forward = lambda x: 2 * original(x)


def of_another_class(unit):
    unit.linears[0] = Scaled(4 * D, 7, dtype=torch.float64)


def without_bias(unit):
    unit.linears[1] = nn.Linear(7, 4, bias=False, dtype=torch.float64)


def nested(unit):
    unit.linears[0] = nn.Sequential(unit.linears[0], nn.LayerNorm(7, dtype=torch.float64))


def parametrized(unit):
    parametrizations.weight_norm(unit.linears[0])
    parametrizations.orthogonal(unit.linears[1])


def weight_norm_of_old(unit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(unit.linears[0])


CHANGES = {
    "affine Dice": ("dice", affine_dice, "activations[0] is an affine Dice"),
    "another activation": (
        "sigmoid",
        lambda unit: unit.activations.__setitem__(0, nn.ReLU()),
        "activations[0] is a ReLU, not a Sigmoid",
    ),
    "hook": (
        "sigmoid",
        lambda unit: unit.linears[1].register_forward_hook(lambda module, args, result: 3 * result),
        "linears[1] has hooks",
    ),
    "pre-hook": (
        "sigmoid",
        lambda unit: unit.activations[1].register_forward_pre_hook(lambda module, args: (args[0] - 1,)),
        "activations[1] has hooks",
    ),
    "replaced forward": ("relu", replaced_forward, "the forward of linears[0] was replaced"),
    "another class": ("relu", of_another_class, "linears[0] is a Scaled, not a Linear"),
    "nested": ("tanh", nested, "linears[0] is a Sequential, not a Linear"),
    "pruned": ("sigmoid", lambda unit: prune.l1_unstructured(unit.linears[0], "weight", 0.5), "linears[0] has hooks"),
    "pruned bias": (
        "prelu",
        lambda unit: prune.random_unstructured(unit.linears[0], "bias", 3),
        "linears[0] has hooks",
    ),
    "old weight norm": ("sigmoid", weight_norm_of_old, "linears[0] has hooks"),
}
SEEN = {
    "parametrized": ("sigmoid", parametrized),
    "without bias": ("sigmoid", without_bias),
    "prune made permanent": (
        "sigmoid",
        lambda unit: prune.remove(prune.l1_unstructured(unit.linears[0], "weight", 0.5), "weight"),
    ),
}


@pytest.mark.filterwarnings("ignore:LocalActivationUnit calls its submodules")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", [*CHANGES, *SEEN])
def test_every_change_of_a_submodule_counts_in_values_and_gradients(change, training):
    activation, spoil, *_ = (CHANGES | SEEN)[change]
    units = [made(activation) for _ in range(2)]
    found = []
    for unit, call in zip(units, (lambda u, q, k: u(q, k, lengths=LENGTHS), by_hand), strict=True):
        torch.manual_seed(3)
        spoil(unit)
        unit.train(training)
        leaves = [each.requires_grad_() for each in given()]
        for _ in range(2):  # the second call shows what a hook computed in the first
            pooled = call(unit, *leaves)
        grads = torch.autograd.grad(pooled.square().sum(), [*leaves, *unit.parameters()])
        found.append([pooled, *grads, *unit.buffers()])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:LocalActivationUnit calls its submodules")
def test_pruned_weights_are_computed_anew_in_every_step():
    unit, (query, history) = made(), given()
    prune.l1_unstructured(unit.linears[0], "weight", 0.5)
    before = unit(query, history)
    with torch.no_grad():
        unit.linears[0].weight_orig.mul_(3)
    assert (unit(query, history) != before).any()


@pytest.mark.parametrize("change", CHANGES)
def test_the_path_through_the_modules_warns_once_and_a_forced_backend_refuses_it(change):
    activation, spoil, reason = CHANGES[change]
    unit, (query, history) = made(activation), given()
    spoil(unit)
    with dk.use_backend("cpu"), pytest.raises(dk.BackendError) as refused, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        unit(query, history)
    assert reason in str(refused.value)
    unit._warned = False
    with pytest.warns(UserWarning) as told:
        unit(query, history)
        unit(query, history)
    assert [reason in str(each.message) for each in told] == [True]


@pytest.mark.parametrize("change", SEEN)
def test_what_the_fused_call_sees_needs_no_other_path(change):
    activation, spoil = SEEN[change]
    unit, (query, history) = made(activation), given()
    spoil(unit)
    with dk.use_backend("cpu"), warnings.catch_warnings():
        warnings.simplefilter("error")
        unit(query, history)


@pytest.mark.filterwarnings("ignore:LocalActivationUnit calls its submodules")
def test_backward_hooks_and_hooks_of_all_modules_are_called():
    unit, (query, history) = made(), given()
    seen = []
    unit.linears[0].register_full_backward_hook(lambda module, *_: seen.append("linear, full"))
    unit.activations[1].register_full_backward_pre_hook(lambda module, *_: seen.append("activation, full pre"))
    unit(query.requires_grad_(), history).sum().backward()
    assert sorted(seen) == ["activation, full pre", "linear, full"]
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(type(module).__name__))
    try:
        made()(query, history)
    finally:
        handle.remove()
    layers = ["NonDynamicallyQuantizableLinear", "Sigmoid"]
    assert called == [*layers, *layers, "NonDynamicallyQuantizableLinear", "LocalActivationUnit"]


@pytest.mark.filterwarnings("ignore:LocalActivationUnit calls its submodules")
@pytest.mark.parametrize("options", [{}, {"normalize": "softmax", "scale": 0.3}, {"features": "outer"}])
@pytest.mark.parametrize("layout", ["right", "left", "masked", "packed", "by id", "all candidates"])
def test_the_path_through_the_modules_serves_every_history_as_the_fused_call(layout, options):
    fused, (query, history) = made(**options), given()
    calling = copy.deepcopy(fused)
    calling.linears[0].register_forward_hook(lambda module, args, result: None)
    packed = dk.Jagged.from_padded(history, LENGTHS)
    ids = torch.randint(0, 9, (packed.num_rows,))
    arguments = {
        "right": (query, history, LENGTHS),
        "left": (query, dk.Padded(history, LENGTHS, padding_side="left")),
        "masked": (query, history, None, torch.arange(B * T).view(B, T) % 3 > 0),
        "packed": (query[[1, 1, 3]], packed, None, None, torch.tensor([2, 2, 0])),
        "by id": (
            dk.Gather(ids[:4], torch.randn(9, D).double()),
            dk.Gather(ids, torch.randn(9, D).double(), packed.offsets),
        ),
        "all candidates": (query.unsqueeze(1).expand(B, 2, D), history, LENGTHS),
    }[layout]
    for ours, expected in zip(*(unit(*arguments, return_weights=True) for unit in (calling, fused)), strict=True):
        ours, expected = (each.values if isinstance(each, dk.Jagged) else each for each in (ours, expected))
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:LocalActivationUnit calls its submodules")
@pytest.mark.parametrize("stats", ["valid", "padded"])
def test_dice_takes_the_statistics_that_the_unit_asks_for_on_both_paths(stats):
    fused, (query, history) = made("dice", stats=stats), given()
    calling = copy.deepcopy(fused)
    calling.linears[0].register_forward_hook(lambda module, args, result: None)
    expected, pooled = fused(query, history, lengths=LENGTHS), calling(query, history, lengths=LENGTHS)
    torch.testing.assert_close(pooled, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(calling.buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    if stats == "padded":
        with pytest.raises(ValueError, match="stats='padded' needs a padded history, got a Jagged"):
            calling(query, dk.Jagged.from_padded(history, LENGTHS))


@pytest.mark.filterwarnings("ignore:LocalActivationUnit calls its submodules")
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_rows_are_computed_in_the_modules_dtype_as_by_kernels(autocast):
    fused, (query, history) = made().float(), [each.bfloat16() for each in given()]
    calling = copy.deepcopy(fused)
    calling.linears[0].register_forward_hook(lambda module, args, result: None)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, pooled = fused(query, history), calling(query, history)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled, expected, rtol=2 * torch.finfo(torch.bfloat16).eps, atol=1e-3)


def test_a_compiled_unit_whose_weight_is_parametrized_is_traced_whole():
    unit, (query, history) = made(), given()
    parametrizations.weight_norm(unit.linears[0])
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, history), unit(query, history), rtol=1e-12, atol=1e-12)


# --- quantization, copies, functional calls --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantization_leaves_the_units_layers_alone_and_quantizes_the_rest():
    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.unit, self.top = made("dice").float(), nn.Linear(D, 1)

        def forward(self, query, history):
            return self.top(self.unit(query, history))

    scorer = Scorer().eval()
    quantized = torch.ao.quantization.quantize_dynamic(scorer, {nn.Linear}, dtype=torch.qint8)
    query, history = (each.float() for each in given())
    assert all(isinstance(layer, nn.Linear) for layer in quantized.unit.linears)
    assert isinstance(quantized.top, torch.ao.nn.quantized.dynamic.Linear)
    assert torch.equal(quantized.unit(query, history), scorer.unit(query, history))
    torch.testing.assert_close(quantized(query, history), scorer(query, history), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("activation", ["prelu", "dice"])
def test_functional_call_computes_with_the_parameters_it_is_given(activation):
    unit, (query, history) = made(activation).eval(), given()
    other = copy.deepcopy(unit)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.5)
    replaced = {name: value.detach() for name, value in other.named_parameters()}
    pooled = torch.func.functional_call(unit, replaced, (query, history))
    assert torch.equal(pooled, other(query, history)) and (pooled != unit(query, history)).any()


# --- meta device ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["prelu", "dice"])
def test_a_unit_from_the_meta_device_is_restored_by_reset_parameters(activation):
    with torch.device("meta"):
        unit = LocalActivationUnit(D, (7, 4), activation)
    unit.to_empty(device="cpu")
    with torch.no_grad():
        for each in unit.state_dict().values():
            each.fill_(torch.nan)
    torch.manual_seed(0)
    unit.reset_parameters()
    torch.manual_seed(0)
    expected = LocalActivationUnit(D, (7, 4), activation)
    assert all(torch.equal(ours, expected.state_dict()[name]) for name, ours in unit.state_dict().items())
