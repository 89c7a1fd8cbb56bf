"""How kernels are held to the reference: errors of both against float64, and the bound between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear

from din_kernels.backends import use_backend
from din_kernels.backends.reference.local_activation import activate, features_of, pair_index
from din_kernels.jagged import Jagged, Padded
from din_kernels.ops.local_activation import local_activation
from din_kernels.ops.local_activation.histories import rows_of
from din_kernels.options import ACTIVATIONS, feature_width

_IN_TRAINING = " in training"  # behind the name of an activation that takes batch statistics
ACTIVATION_CASES = (
    *ACTIVATIONS,
    *(name + _IN_TRAINING for name, activation in ACTIVATIONS.items() if activation.statistics),
)
LAYOUTS = ("packed", "right padded", "left padded", "masked", "query_to_user")

# Beside twice the reference's own error, relative to the largest entry of a tensor: 2e-6 is 16 units in the last place
# of float32. In double there is no finer reference, so the floor is the bound: sums over some hundred rows already
# differ by 1e-13 between orders of addition.
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@dataclass(frozen=True)
class Case:
    """One call of the unit: options, and inputs in float64 on the CPU."""

    features: str
    activation: str
    normalize: str
    layout: str
    scale: float
    query: torch.Tensor  # [Q, D]
    history: torch.Tensor  # [N, D], or [U, T, D] where padded
    shape: dict[str, Any] = field(repr=False)  # offsets, or lengths and padding_side, or mask
    query_to_user: torch.Tensor | None = field(repr=False)
    weights: list[torch.Tensor] = field(repr=False)
    biases: list[torch.Tensor] = field(repr=False)
    params: list[dict[str, Any]] = field(repr=False)


def make_case(
    features: str,
    activation: str,
    normalize: str,
    layout: str,
    dim: int = 19,
    hidden: tuple[int, ...] = (24, 9),
    lengths: tuple[int, ...] = (0, 1, 7, 3, 0, 33, 16, 101, 2, 0),
    seed: int = 0,
) -> Case:
    """Ragged histories, empty ones among them, and a width that no vector length divides.

    activation: one of `ACTIVATION_CASES`; "dice in training" takes batch statistics.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    widths = [feature_width(dim, features), *hidden, 1]
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    training = activation.endswith(_IN_TRAINING)
    activation = activation.removesuffix(_IN_TRAINING)
    kind = ACTIVATIONS[activation]
    params: list[dict[str, Any]] = []
    for width in hidden:
        layer: dict[str, Any] = {name: normal(width) for name in kind.params}
        if kind.statistics:
            layer |= {"var": layer["var"].square() + 0.1, "eps": 1e-8, "training": training}
        params.append(layer)
    length = torch.tensor(lengths, dtype=torch.int64)
    users, longest = len(lengths), max(lengths, default=0)
    query_to_user = (
        torch.arange(users).repeat_interleave(torch.arange(users) % 3) if layout == "query_to_user" else None
    )
    shape: dict[str, Any] = {"offsets": torch.nn.functional.pad(length.cumsum(0), (1, 0))}
    history = normal(sum(lengths), dim)
    if layout in ("right padded", "left padded", "masked"):
        history = normal(users, longest, dim)
        shape = {"lengths": length, "padding_side": layout.removesuffix(" padded")}
        if layout == "masked":
            shape = {"mask": torch.rand(users, longest, generator=generator) * longest < length[:, None]}
    queries = users if query_to_user is None else len(query_to_user)
    return Case(
        features=features,
        activation=activation,
        normalize=normalize,
        layout=layout,
        scale=0.7,
        query=normal(queries, dim),
        history=history,
        shape=shape,
        query_to_user=query_to_user,
        weights=[normal(b, a) / a**0.5 for a, b in pairs],
        biases=[normal(b) for _, b in pairs],
        params=params,
    )


def results(case: Case, backend: str, dtype: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Pooled, weights and every gradient (of a fixed linear function of both), by name, in float64 on the CPU.

    Inputs are rounded to `dtype` first, whatever dtype is computed in later.
    """
    leaves: dict[str, torch.Tensor] = {}

    def leaf(name, tensor):
        leaves[name] = tensor.to(device, dtype).requires_grad_()
        return leaves[name]

    rows = leaf("history", case.history)
    shape = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in case.shape.items()}
    history = Jagged(rows, shape["offsets"]) if "offsets" in shape else Padded(rows, **shape)
    learned = ACTIVATIONS[case.activation].learned
    params = [
        {
            key: leaf(f"{key}[{layer}]", value) if key in learned else _moved(value, device, dtype)
            for key, value in given.items()
        }
        for layer, given in enumerate(case.params)
    ]
    user = None if case.query_to_user is None else case.query_to_user.to(device)
    with use_backend(backend):
        pooled, weights = local_activation(
            leaf("query", case.query),
            history,
            [leaf(f"weights[{layer}]", weight) for layer, weight in enumerate(case.weights)],
            [leaf(f"biases[{layer}]", bias) for layer, bias in enumerate(case.biases)],
            features=case.features,
            activation=case.activation,
            activation_params=params,
            normalize=case.normalize,
            scale=case.scale,
            query_to_user=user,
            return_weights=True,
        )
    weights = weights.values if isinstance(weights, Jagged) else weights
    generator = torch.Generator().manual_seed(1)
    outputs = {"pooled": pooled, "weights": weights}
    towards = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each) for each in outputs.values()]
    grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), towards)
    outputs |= {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {name: value.detach().cpu().double() for name, value in outputs.items()}


def _moved(value, device, dtype):
    return value.to(device, dtype) if isinstance(value, torch.Tensor) else value


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """The case with its tensors rounded to `dtype`, still in float64: what the float64 reference must be given."""

    def through(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.to(dtype).double()
        if isinstance(value, list):
            return [through(each) for each in value]
        if isinstance(value, dict):
            return {key: through(each) for key, each in value.items()}
        return value

    return Case(**{name: through(value) for name, value in vars(case).items()})


def away_from_kinks(case: Case, dtype: torch.dtype) -> Case:
    """A case of `dtype`'s numbers with behaviours drawn anew until no z of relu or prelu lies within rounding of 0.

    On which side of 0 half precision puts such a z is chance, in a kernel as in the reference, and moves a whole pair's
    gradient. Rounding errors of the terms add up like random ones: to `eps` times the root of their squares, with those
    of the layers below to a few times that where there are several; twice `eps` is kept clear.
    """
    if case.activation not in ("relu", "prelu"):
        return case
    layout = rows_of(
        Jagged(case.history, **case.shape) if "offsets" in case.shape else Padded(case.history, **case.shape)
    )
    queries = len(case.query)
    candidate, _, row = pair_index(layout.begin, layout.length, layout.row_index, case.query_to_user, queries)
    rows = case.history.reshape(-1, case.history.shape[-1]).clone()
    generator = torch.Generator().manual_seed(2)
    for _ in range(1000):
        hidden = features_of(case.query[candidate], rows[row], case.features)
        near = torch.zeros(len(candidate), dtype=torch.bool)
        for weight, bias, params in zip(case.weights, case.biases, case.params, strict=False):
            z = linear(hidden, weight, bias)
            terms = linear(hidden.square(), weight.square(), bias.square()).sqrt()
            near |= (z.abs() < 2 * torch.finfo(dtype).eps * terms).any(1)
            hidden, _ = activate(z, case.activation, params)
        if not near.any():
            return replace(case, history=rows.view_as(case.history))
        again = row[near].unique()
        drawn = torch.randn(len(again), rows.shape[1], generator=generator, dtype=torch.float64)
        rows[again] = drawn.to(dtype).double()
    raise RuntimeError(f"behaviours away from the kinks of {case.activation} were not found in 1000 draws")


class Deviation(NamedTuple):
    """One tensor of one case: the kernel's largest error against float64, and what it may be."""

    tensor: str
    error: float
    bound: float

    @property
    def ratio(self) -> float:
        """Error over bound; passes up to 1, and a NaN does not."""
        return self.error / self.bound if self.bound else (0.0 if self.error == 0 else float("inf"))


def deviations(case: Case, backend: str, dtype: torch.dtype, device: str = "cpu") -> Iterator[Deviation]:
    """Errors of `backend` in the max norm per tensor; the bound is twice the reference's own error in `dtype`, plus
    `FLOOR[dtype]` times the tensor's largest entry. The gradient of a bias is a sum whose terms cancel, under softmax
    that of the last one to exactly 0, so its floor counts from the largest entry of any gradient. In half precision the
    case is kept `away_from_kinks`.

    Raises:
        BackendError: the backend does not serve this case.
    """
    case = rounded(case, dtype)
    if dtype.itemsize == 2:
        case = away_from_kinks(case, dtype)
    ours = results(case, backend, dtype, device)
    exact = results(case, "reference", torch.float64)
    own = exact if dtype == torch.float64 else results(case, "reference", dtype, device)
    yield from compared(ours, own, exact, dtype)


def compared(
    ours: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    exact: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> Iterator[Deviation]:
    """As `deviations`, of results at hand: a kernel's, the reference's own in `dtype` and in float64."""
    largest_gradient = max((_max(value) for name, value in exact.items() if name.startswith("grad")), default=0.0)
    for name, expected in exact.items():
        largest = largest_gradient if name.startswith("grad") and "bias" in name else _max(expected)
        error = _max(ours[name] - expected)
        yield Deviation(name, error, 2 * _max(own[name] - expected) + FLOOR[dtype] * largest)


def _max(tensor: torch.Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0
