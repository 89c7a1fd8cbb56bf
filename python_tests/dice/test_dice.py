"""Claims about Dice: kernel against reference and BatchNorm1d, padding, statistics, other libraries' modules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from support.bounds import holds
from support.isas import results_of_every_isa
from torch import nn

import din_kernels as dk
from din_kernels import dice
from din_kernels.nn import Dice
from din_kernels.verification import FLOOR, Deviation

pytestmark = pytest.mark.usefixtures("uninitialized_memory_is_nan")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def make(rows=137, channels=19, masked=False, affine=False, shift=0.7, seed=0) -> dict[str, torch.Tensor | None]:
    """Inputs in float64: x has another mean and scale in every channel."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    case = {"x": normal(rows, channels) * normal(channels).exp() + shift * normal(channels), "alpha": normal(channels)}
    case |= {"mean": normal(channels), "var": normal(channels).square() + 0.1}
    case |= {"weight": normal(channels), "bias": normal(channels)} if affine else {}
    case["mask"] = torch.rand(rows, generator=generator) < 0.6 if masked else None
    return case


def results(case, dtype, backend, training, eps=1e-8) -> dict[str, torch.Tensor]:
    """Output, statistics and all gradients, in float64; x in dtype, the parameters in fp32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    given = {
        name: value if value is None or name == "mask" else value.to(dtype if name == "x" else wide)
        for name, value in case.items()
    }
    leaves = {name: given[name].requires_grad_() for name in ("x", "alpha", "weight", "bias") if name in given}
    with dk.use_backend(backend):
        y, mean, var, count = dice(**given, training=training, eps=eps)
    assert y.dtype == dtype and mean.dtype == var.dtype == wide
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), towards)
    found = {"y": y, "mean": mean, "var": var, "count": count}
    found |= {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {name: value.detach().double() for name, value in found.items()}


def rounded(case, dtype):
    """x as `dtype` holds it and parameters as fp32 does, in float64 again."""
    wide = torch.promote_types(dtype, torch.float32)
    return {
        name: value if value is None or name == "mask" else value.to(dtype if name == "x" else wide).double()
        for name, value in case.items()
    }


def deviations(case, dtype, training) -> Iterator[Deviation]:
    """Errors against float64; the bound is twice the reference's own error in dtype, plus the stated floor."""
    case = rounded(case, dtype)
    ours, own = results(case, dtype, "cpu", training), results(case, dtype, "reference", training)
    exact = results(case, torch.float64, "reference", training)
    largest = {name: right.abs().max().item() for name, right in exact.items()}
    # Gradients of parameters are sums whose terms cancel: their floor counts from the largest gradient. That of x also
    # flows through mean and variance, whose size it then takes.
    of_gradients = max(size for name, size in largest.items() if name.startswith("grad"))
    of_x = max(size for name, size in largest.items() if name != "count")
    for name, right in exact.items():
        floor = FLOOR[dtype if name in ("y", "grad x") else torch.promote_types(dtype, torch.float32)]
        size = of_x if name == "grad x" else of_gradients if name.startswith("grad") else largest[name]
        bound = 2 * (own[name] - right).abs().max().item() + floor * size
        yield Deviation(name, (ours[name] - right).abs().max().item(), bound)


def assert_as_reference(case, dtype, training) -> None:
    holds(deviations(case, dtype, training))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_equals_reference_forward_and_backward(dtype, training):
    for channels, masked, affine in itertools.product((1, 19, 64, 83), (False, True), (False, True)):
        assert_as_reference(make(137, channels, masked, affine), dtype, training)
    assert_as_reference(make(7000, 33, masked=True), dtype, training)  # several blocks
    assert_as_reference(make(3, 40_000), dtype, training)  # more channels than a block has elements


@pytest.mark.parametrize("training", [True, False])
def test_a_tensor_too_large_for_the_caches_equals_reference(training):
    """Rows that begin on cache lines, in 16 MB and more, are written past the caches."""
    assert_as_reference(make(140_000, 32, masked=True), torch.float32, training)


@pytest.mark.parametrize("training", [True, False])
def test_value_and_gradients_equal_batch_norm_1d(training):
    case = make(affine=False)
    norm = nn.BatchNorm1d(19, eps=1e-8, affine=False).double().train(training)
    norm.running_mean.copy_(case["mean"]), norm.running_var.copy_(case["var"])
    x, alpha = case["x"].clone().requires_grad_(), case["alpha"].clone().requires_grad_()
    p = torch.sigmoid(norm(x))
    y = p * x + (1 - p) * alpha * x
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad(y, (x, alpha), towards)
    ours = results(case, torch.float64, "cpu", training)
    torch.testing.assert_close(ours["y"], y.detach())
    torch.testing.assert_close(ours["grad x"], grads[0])
    torch.testing.assert_close(ours["grad alpha"], grads[1])


@pytest.mark.parametrize("affine", [False, True])
def test_module_trains_and_evaluates_as_batch_norm_1d(affine):
    module, norm = Dice(8, affine=affine).double(), nn.BatchNorm1d(8, eps=1e-8, affine=affine).double()
    for step in range(4):
        x = make(23, 8, seed=step)["x"]
        p = torch.sigmoid(norm(x))
        torch.testing.assert_close(module(x), p * x)
    torch.testing.assert_close(module.running_mean, norm.running_mean)
    torch.testing.assert_close(module.running_var, norm.running_var)
    x = make(5, 8, seed=9)["x"]
    torch.testing.assert_close(module.eval()(x), torch.sigmoid(norm.eval()(x)) * x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [False, True])
def test_gradients_pass_gradcheck(training, affine):
    case = make(9, 3, masked=True, affine=affine)
    names = ["x", "alpha", *(("weight", "bias") if affine else ())]

    def function(*tensors):
        with dk.use_backend("cpu"):
            return dice(**(case | dict(zip(names, tensors, strict=True))), training=training, eps=1e-3)[0]

    assert torch.autograd.gradcheck(function, tuple(case[name].requires_grad_() for name in names))


def test_mean_far_from_zero_cancels_nothing():
    """Squares of 1e4 leave no digit of a variance of 1 in fp32: statistics that subtract them would be wrong."""
    x = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([1e4, -1e4, 0.0])
    with dk.use_backend("cpu"):
        _, mean, var, _ = dice(x, torch.zeros(3), training=True)
    torch.testing.assert_close(mean.double(), x.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), x.double().var(0, unbiased=False), rtol=1e-5, atol=0)


def test_gate_is_the_sigmoid_to_two_roundings_at_both_ends_too():
    """With mean 0, variance 1 and alpha 0, y = x p(x); p is 1 at infinity and below 1e-37 at the other end."""
    x = torch.cat([torch.linspace(-87, 87, 100_001), torch.tensor([float("inf"), -1e30, float("nan")])])[:, None]
    with dk.use_backend("cpu"):
        y = dice(x, torch.zeros(1), torch.zeros(1), torch.ones(1), training=False, eps=0)[0]
    exact = torch.sigmoid(x.double())
    p, right = (y.double() / x.double())[:-3], exact[:-3]
    known = x[:-3] != 0
    assert ((p - right).abs()[known] <= 2.0**-23 + 2.0**-24).all()
    assert ((p - right).abs()[known] <= (2.0**-22 + 2.0**-23 * x[:-3].abs().double())[known] * right[known]).all()
    assert y[-3] == float("inf") and y[-2].abs() < 1e-37 * 1e30 and y[-1].isnan()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_no_valid_row_and_one_are_defined(rows, backend):
    """Without a valid row: output and gradients 0, running statistics untouched. With one, p is 1/2."""
    module = Dice(3).double()
    x = make(rows, 3)["x"].requires_grad_()
    mask = torch.zeros(rows, dtype=torch.bool)
    with dk.use_backend(backend):
        y = module(x, mask)
    y.sum().backward()
    assert (y == 0).all() and (x.grad == 0).all() and (module.alpha.grad == 0).all()
    assert torch.equal(module.running_mean, torch.zeros(3).double())
    assert torch.equal(module.running_var, torch.ones(3).double())
    if rows:
        mask[-1] = True
        with dk.use_backend(backend):
            y = module(x, mask)
        torch.testing.assert_close(y[-1], x[-1] / 2)
        assert module.running_mean.abs().min() > 0
        assert torch.isfinite(module.running_var).all()


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing_however_it_comes(training):
    """Rows of a Jagged, of [B, T, C] with lengths and with a mask: the same values, statistics and gradients."""
    lengths = torch.tensor([3, 0, 5, 1])
    packed = dk.Jagged.from_lengths(make(9, 6)["x"], lengths)
    padded = packed.to_padded(padding_value=float("nan"))  # padding is not read
    found = []
    for form in ("jagged", "lengths", "mask"):
        module = Dice(6, affine=True).double().train(training)
        module.alpha.data.copy_(make(1, 6)["alpha"])
        valid = torch.arange(5) < lengths[:, None]
        leaf = (packed.values if form == "jagged" else padded).clone().requires_grad_()
        if form == "jagged":
            y = module(dk.Jagged(leaf, packed.offsets)).values
        else:
            y = module(leaf, **({"lengths": lengths} if form == "lengths" else {"mask": valid}))
        y.square().sum().backward()
        grad = leaf.grad
        if form != "jagged":
            assert (y[~valid] == 0).all() and (grad[~valid] == 0).all()
            y, grad = y[valid], grad[valid]
        found.append([y, grad, module.alpha.grad, module.weight.grad, module.running_mean, module.running_var])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_results_do_not_depend_on_the_number_of_threads_bit_for_bit():
    case = make(9000, 83, masked=True, affine=True)
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 4, 7):
            torch.set_num_threads(threads)
            found[threads] = results(case, torch.float32, "cpu", True)
    finally:
        torch.set_num_threads(before)
    for threads in (2, 4, 7):
        assert all(torch.equal(found[1][name], found[threads][name]) for name in found[1])


def test_one_alpha_for_all_channels_sums_its_gradients():
    case = make()
    shared = case | {"alpha": case["alpha"][:1]}
    each = case | {"alpha": case["alpha"][:1].expand(19)}
    one, many = (results(given, torch.float64, "cpu", True) for given in (shared, each))
    torch.testing.assert_close(one["grad alpha"], many["grad alpha"].sum(0, keepdim=True))
    assert torch.equal(one["y"], many["y"])


@pytest.mark.parametrize("masked", [False, True])
def test_op_passes_opcheck(masked):
    case = make(12, 5, masked, affine=True)
    x, alpha, weight, bias = (case[name].float().requires_grad_() for name in ("x", "alpha", "weight", "bias"))
    for training in (True, False):
        statistics = (None, None) if training else (case["mean"].float(), case["var"].float())
        arguments = (x, alpha, weight, bias, *statistics, case["mask"], training, 1e-8, "cpu")
        torch.library.opcheck(torch.ops.din_kernels.dice.default, arguments)


def test_double_backward_is_refused():
    case = make(5, 3)
    x = case["x"].requires_grad_()
    with dk.use_backend("cpu"):
        y = dice(x, case["alpha"], training=True)[0]
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="dice has no double backward"):
        grad.sum().backward()


def test_every_isa_gives_the_same_to_rounding(tmp_path):
    script = """
from test_dice import DTYPES, make, results
cases = [(dtype, channels) for dtype in DTYPES for channels in (3, 83)]
found = {case: results(make(50, case[1], True, True), case[0], "cpu", True) for case in cases}
"""
    found = results_of_every_isa(script, __file__, tmp_path)
    for cases in found.values():
        for (dtype, channels), tensors in cases.items():
            for name, value in tensors.items():
                other = found["baseline"][dtype, channels][name]
                assert (value - other).abs().max() <= 4 * FLOOR[dtype] * (1 + other.abs().max()), (dtype, name)


# --- modules of other libraries, by their formulas --------------------------------------------------------------------


class AffineDice(nn.Module):
    """y = alpha (1 - p) x + p x with p = sigmoid(BatchNorm1d(x)), channels in dimension 1 as in DeepCTR-Torch's."""

    def __init__(self, channels, dim):
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, eps=1e-8)
        self.alpha = nn.Parameter(torch.zeros((channels,) if dim == 2 else (channels, 1)))

    def forward(self, x):
        x = x.transpose(1, 2) if x.dim() == 3 else x
        p = torch.sigmoid(self.bn(x))
        y = self.alpha * (1 - p) * x + p * x
        return y.transpose(1, 2) if x.dim() == 3 else y


class PlainDice(nn.Module):
    """The same without affine, momentum 0.01 and eps 1e-9, as FuxiCTR's."""

    def __init__(self, channels):
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, affine=False, eps=1e-9, momentum=0.01)
        self.alpha = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        p = torch.sigmoid(self.bn(x))
        return p * x + self.alpha * (1 - p) * x


@pytest.mark.parametrize(
    ("theirs", "preset", "shape"),
    [
        (lambda: AffineDice(6, 2), Dice.from_deepctr_torch, (20, 6)),
        (lambda: AffineDice(6, 3), Dice.from_deepctr_torch, (4, 5, 6)),
        (lambda: PlainDice(6), Dice.from_fuxictr, (20, 6)),
    ],
)
def test_presets_continue_other_libraries_modules(theirs, preset, shape):
    torch.manual_seed(0)
    theirs = theirs().double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    for _ in range(2):
        theirs(torch.randn(shape, dtype=torch.float64) + 1)
    ours = preset(theirs.state_dict())
    for training in (True, True, False):
        x = (torch.randn(shape, dtype=torch.float64) * 2).requires_grad_()
        y, expected = ours.train(training)(x), theirs.train(training)(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (y, expected)))
    torch.testing.assert_close(ours.running_var, theirs.bn.running_var)


def test_preset_without_statistics_is_named():
    with pytest.raises(ValueError, match="state must hold 'bn.running_mean', got 'alpha'"):
        Dice.from_fuxictr({"alpha": torch.zeros(3)})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape \[..., C\], got \[3\]"),
        ({"x": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "x must have a floating-point dtype"),
        ({"alpha": torch.zeros(3)}, ValueError, r"alpha must have shape \[4\], got \[3\]"),
        ({"training": False}, TypeError, "mean must be a torch.Tensor, got NoneType"),
        ({"mask": torch.ones(3)}, TypeError, "mask must be bool, true where valid, got torch.float32"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, ValueError, r"mask must have shape \[3\]"),
        ({"weight": torch.ones(1)}, ValueError, r"weight must have shape \[4\], got \[1\]"),
    ],
)
def test_wrong_input_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        dice(**({"x": torch.zeros(3, 4), "alpha": torch.zeros(4), "training": True} | changes))


def test_module_refuses_lengths_that_fit_nothing():
    for x, more in ((torch.zeros(3, 4), {}), (torch.zeros(3, 5, 4), {"mask": torch.ones(3, 5, dtype=torch.bool)})):
        with pytest.raises(ValueError, match=r"lengths must come with x of shape \[B, T, C\] and no mask"):
            Dice(4)(x, lengths=torch.tensor([1, 1, 1]), **more)
