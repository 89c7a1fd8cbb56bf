"""Every public entry point as a small valid call, and its result computed independently in float64 NumPy."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from support import oracle

import din_kernels as dk
from din_kernels import nn, optim
from din_kernels.ops.sparse_update import Hyper, Table, sparse_update

FEATURE_WIDTHS = {"concat": lambda d: 4 * d, "product": lambda d: 3 * d, "outer": lambda d: 2 * d + d * d}
ROWS, DIM = 6, 3  # of a table


class Call(NamedTuple):
    """An entry point."""

    arguments: Callable[[np.random.Generator], dict[str, Any]]  # valid ones, by the names that messages use
    run: Callable[[dict[str, Any]], Any]  # its results, nested lists of tensors and numbers
    expected: Callable[[dict[str, Any]], Any]  # the same of arguments that are still legal


def array(tensor) -> np.ndarray:
    """A plain tensor as float64; anything else is not legal where a tensor is expected."""
    assert isinstance(tensor, torch.Tensor), f"{type(tensor).__name__} was taken for a tensor"
    plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    assert plain and not tensor.is_complex(), f"{tensor.layout} {tensor.dtype} was taken for a plain tensor"
    return tensor.detach().double().as_subclass(torch.Tensor).numpy(force=True)


def ids(tensor) -> np.ndarray:
    """A tensor of ids as int64."""
    assert tensor.dtype in (torch.int64, torch.int32), f"{tensor.dtype} was taken for ids"
    return array(tensor).astype(np.int64)


def number(value) -> float:
    """A real number; bools and strings are none."""
    assert not isinstance(value, (bool, str, bytes)), f"{value!r} was taken for a number"
    return float(value)


def whole(value) -> int:
    """An integer."""
    truth = isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)
    assert not truth, "a bool was taken for an integer"
    return operator.index(value)


def flag(value) -> bool:
    """A bool."""
    assert isinstance(value, bool), f"{value!r} was taken for a bool"
    return value


def counts_of_rows(rng) -> torch.Tensor:
    """n_j of a table's ROWS rows, whole or floating; an id that no sample held has 0."""
    return torch.tensor([3, 1, 0, 2, 5, 4], dtype=(torch.int64, torch.float32)[rng.integers(2)])


def floats(rng, *shape, dtype=torch.float32):
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


# --- the unit ---------------------------------------------------------------------------------------------------------


def _unit_arguments(rng) -> dict[str, Any]:
    features, activation = rng.choice(list(FEATURE_WIDTHS)), rng.choice(["sigmoid", "relu", "tanh", "prelu", "dice"])
    dtype = (torch.float32, torch.float64)[rng.integers(2)]
    width, hidden = FEATURE_WIDTHS[features](DIM), 4
    params = {
        "prelu": {"slope": floats(rng, hidden, dtype=dtype)},
        "dice": {
            "alpha": floats(rng, hidden, dtype=dtype),
            "mean": floats(rng, hidden, dtype=dtype),
            "var": floats(rng, hidden, dtype=dtype).square() + 0.5,
            "eps": 1e-8,
            "training": bool(rng.integers(2)),
        },
    }
    return {
        "weights": [floats(rng, hidden, width, dtype=dtype), floats(rng, 1, hidden, dtype=dtype)],
        "biases": [floats(rng, hidden, dtype=dtype), floats(rng, 1, dtype=dtype)],
        "query": floats(rng, 3, DIM, dtype=dtype).requires_grad_(bool(rng.integers(2))),
        "features": str(features),
        "activation": str(activation),
        "activation_params": [params[activation]] if activation in params else None,
        "normalize": str(rng.choice(["none", "softmax"])),
        "scale": 0.5,
        "query_to_user": torch.tensor([0, 1, 1]),
        "return_weights": True,
        "total_pairs": None,
        "stats": "valid",
    }


def _packed_arguments(rng) -> dict[str, Any]:
    given = _unit_arguments(rng)
    return given | {"history": dk.Jagged(floats(rng, 5, DIM, dtype=given["query"].dtype), torch.tensor([0, 2, 5]))}


def _attended(given, histories, pairs_of=None):
    """pooled `[Q, D]` and the weights `[P]` of the oracle."""
    params = [{}] * (len(given["weights"]) - 1) if given["activation_params"] is None else given["activation_params"]
    plain = [
        {
            name: value if name in ("eps", "training") else array(value)
            for name, value in ({"eps": 1e-8, "training": False} | layer).items()
        }
        for layer in params
    ]
    for layer in plain:
        flag(layer["training"])
        layer["eps"] = number(layer["eps"])
    total = given["total_pairs"]
    user = given["query_to_user"]
    users = np.arange(len(given["query"])) if user is None else ids(user)
    unit = oracle.Unit(
        query=array(given["query"]),
        histories=histories,
        weights=[array(each) for each in given["weights"]],
        biases=[array(each) for each in given["biases"]],
        params=plain,
        features=given["features"],
        activation=given["activation"],
        normalize=given["normalize"],
        scale=number(given["scale"]),
        query_to_user=users,
    )
    pooled, weights = unit.forward()
    assert total is None or not flag(given["return_weights"]) or whole(total) == len(weights)
    return pooled, weights, unit


def _packed_expected(given):
    values, offsets = array(given["history"].values), ids(given["history"].offsets)
    histories = [values[begin:end] for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]
    pooled, weights, _ = _attended(given, histories)
    return [pooled, weights] if flag(given["return_weights"]) else [pooled]


def _backward(result):
    """The gradients of everything are computed too, so that nothing fails then."""
    tensors = [each.values if isinstance(each, dk.Jagged) else each for each in result]
    differentiable = [each for each in tensors if isinstance(each, torch.Tensor) and each.requires_grad]
    if differentiable:
        sum(each.sum() for each in differentiable).backward()
    return [each.detach() if isinstance(each, torch.Tensor) else each for each in tensors]


def _run_packed(given):
    result = dk.local_activation(**given)
    return _backward(result if isinstance(result, tuple) else [result])


def _module_arguments(rng):
    return {
        "dim": DIM, "hidden": (4, 2), "activation": "dice", "features": "concat", "normalize": "none", "scale": 1.0,
        "device": None, "dtype": None, "stats": "valid",
    }  # fmt: skip


def _run_module(given):
    unit = nn.LocalActivationUnit(**given)
    return [list(layer.weight.shape) for layer in unit.linears] + [unit.scale]


def _module_expected(given):
    widths = [FEATURE_WIDTHS[given["features"]](whole(given["dim"])), *map(whole, given["hidden"]), 1]
    return [[b, a] for a, b in zip(widths[:-1], widths[1:], strict=True)] + [number(given["scale"])]


def _padded_arguments(rng):
    lengths, mask = torch.tensor([4, 0, 2]), torch.from_numpy(rng.integers(0, 2, (3, 4)) > 0)
    by_mask = bool(rng.integers(2))
    return {
        "query": floats(rng, 3, DIM), "history": floats(rng, 3, 4, DIM), "lengths": None if by_mask else lengths,
        "mask": mask if by_mask else None, "query_to_user": None,
        "padding_side": "right" if by_mask else str(rng.choice(["left", "right"])), "return_weights": False,
        "total_pairs": None,
    }  # fmt: skip


_UNIT = nn.LocalActivationUnit(DIM, (4,), "tanh")


def _valid(given) -> np.ndarray:
    """`[B, T]` bool."""
    rows, width = given["history"].shape[:2]
    if given["mask"] is not None:
        assert given["lengths"] is None and given["mask"].dtype == torch.bool
        return array(given["mask"]) > 0
    lengths = np.full(rows, width) if given["lengths"] is None else ids(given["lengths"])
    column = np.arange(width)[None]
    lengths = lengths[:, None]
    return column < lengths if given["padding_side"] == "right" else column >= width - lengths


def _padded_expected(given):
    histories = [rows[valid] for rows, valid in zip(array(given["history"]), _valid(given), strict=True)]
    layers = {"weights": [each.weight for each in _UNIT.linears], "biases": [each.bias for each in _UNIT.linears]}
    options = {"features": "concat", "activation": "tanh", "normalize": "none", "scale": 1.0}
    query = given["query"].reshape(-1, given["query"].shape[-1])
    rest = {"activation_params": None, "query": query}
    pooled, weights, unit = _attended(given | layers | options | rest, histories)
    pooled = pooled.reshape(given["query"].shape)
    if not flag(given["return_weights"]):
        return [pooled]
    padded = np.zeros((len(query), given["history"].shape[1]))
    for at, pairs in enumerate(unit.pairs):
        padded[at][_valid(given)[unit.query_to_user[at]]] = weights[pairs]
    return [pooled, padded]


def _run_padded(given):
    result = _UNIT(**given)
    return _backward(result if isinstance(result, tuple) else [result])


# --- Dice -------------------------------------------------------------------------------------------------------------


def _dice_arguments(rng):
    return {
        "x": floats(rng, 5, DIM).requires_grad_(bool(rng.integers(2))), "alpha": floats(rng, DIM),
        "mean": floats(rng, DIM), "var": floats(rng, DIM).square() + 0.5, "training": bool(rng.integers(2)),
        "eps": 1e-3, "mask": None if rng.integers(2) else torch.tensor([True, False, True, True, True]),
        "weight": floats(rng, DIM), "bias": floats(rng, DIM),
    }  # fmt: skip


def _dice_expected(given):
    x = array(given["x"])
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    mask = np.ones(len(x), bool) if given["mask"] is None else array(given["mask"]).reshape(-1) > 0
    assert given["mask"] is None or given["mask"].dtype == torch.bool
    kept = x[mask]
    if flag(given["training"]):
        mean, var = (kept.mean(0), kept.var(0)) if len(kept) else (np.zeros(shape[-1]), np.ones(shape[-1]))
    else:
        mean, var = array(given["mean"]), array(given["var"])
    z = (x - mean) / np.sqrt(var + number(given["eps"]))
    z = z * (1 if given["weight"] is None else array(given["weight"])) + (
        0 if given["bias"] is None else array(given["bias"])
    )
    alpha, p = array(given["alpha"]), oracle.sigmoid(z)
    y = np.where(mask[:, None], x * (alpha + (1 - alpha) * p), 0)
    return [y.reshape(shape), mean, var, len(kept)]


def _run_dice(given):
    return _backward(dk.dice(**given))


def _dice_module_arguments(rng):
    return {"num_features": DIM, "eps": 1e-8, "momentum": 0.1, "affine": False, "device": None, "dtype": None}


_X = torch.linspace(-2, 2, 4 * DIM).view(4, DIM)


def _run_dice_module(given):
    made = nn.Dice(**given)
    return [made(_X.to(made.alpha.dtype)), made.running_mean]


def _dice_module_expected(given):
    whole(given["num_features"]), flag(given["affine"])
    x = array(_X)
    y, mean, _ = oracle.dice(x, 0.0, None, None, number(given["eps"]), True)
    return [y, (1 if given["momentum"] is None else number(given["momentum"])) * mean]


# --- the sparse side --------------------------------------------------------------------------------------------------


def _penalty_arguments(rng):
    return {
        "weight": floats(rng, ROWS, DIM).requires_grad_(), "ids": torch.tensor([[0, 1, 1], [4, 5, 0]]),
        "counts": counts_of_rows(rng), "coeff": 0.1, "padding_idx": 0 if rng.integers(2) else None,
        "sparse": bool(rng.integers(2)),
    }  # fmt: skip


def _penalty_expected(given):
    padding_idx = None if given["padding_idx"] is None else whole(given["padding_idx"])
    given_ids = given["ids"].values if isinstance(given["ids"], dk.Jagged) else given["ids"]
    flag(given["sparse"])
    arguments = array(given["weight"]), ids(given_ids), array(given["counts"]), number(given["coeff"]), padding_idx
    return [oracle.mba_penalty(*arguments)[0]]


def _run_penalty(given):
    return _backward([dk.mba_penalty(**given)])


def _update_arguments(rng):
    rule = str(rng.choice(["sgd", "momentum", "adagrad", "adam"]))
    states = {"sgd": 0, "momentum": 1, "adagrad": 1, "adam": 2}[rule]
    return {
        "rule": rule, "weight": floats(rng, ROWS, DIM), "states": [torch.ones(ROWS, DIM) for _ in range(states)],
        "ids": torch.tensor([1, 1, 4]), "grads": floats(rng, 3, DIM), "counts": counts_of_rows(rng),
        "padding_idx": None, "lr": 0.1, "step": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": 0.1, "coeff": 0.2,
        "maximize": False, "decoupled": bool(rng.integers(2)), "hyper": None,
    }  # fmt: skip


def _hyper(given) -> Hyper:
    return Hyper(**{name: given[name] for name in Hyper._fields})


def _run_update(given):
    hyper = _hyper(given) if given["hyper"] is None else given["hyper"]
    names = ("weight", "states", "ids", "grads")
    table = Table(*(given[name] for name in names), hyper, given["counts"], given["padding_idx"])
    sparse_update([table], given["rule"])
    return [given["weight"].detach(), *given["states"]]


def _update_expected(given):
    for name in ("maximize", "decoupled"):
        flag(given[name])
    numbers = {name: number(given[name]) for name in ("lr", "step", "beta1", "beta2", "eps", "coeff")}
    hyper = _hyper(given)._replace(**numbers)
    counts = None if given["counts"] is None else array(given["counts"])
    padding_idx = None if given["padding_idx"] is None else whole(given["padding_idx"])
    states = [array(each) for each in given["states"]]
    weight, states = oracle.sparse_update(
        given["rule"], array(given["weight"]), states, ids(given["ids"]), array(given["grads"]), counts, padding_idx,
        hyper,
    )  # fmt: skip
    return [weight, *states]


_OPTIMIZERS = {
    "SparseSGD": ("momentum", {"momentum": 0.5, "nesterov": False}),
    "SparseAdagrad": ("adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 0.1}),
    "SparseRowWiseAdagrad": ("rowwise_adagrad", {"eps": 0.1, "initial_accumulator_value": 0.5}),
    "SparseAdam": ("adam", {"betas": (0.5, 0.75), "eps": 0.1}),
}


def _optimizer(name: str) -> Call:
    rule, options = _OPTIMIZERS[name]

    def arguments(rng):
        weight = torch.nn.Parameter(floats(rng, ROWS, DIM))
        rows = torch.sparse_coo_tensor([[1, 1, 4]], floats(rng, 3, DIM), (ROWS, DIM))
        return {"params": [weight], "lr": 0.1, "mba": None, "maximize": False, "gradient": rows} | options

    def run(given):
        given = dict(given)
        gradient, params = given.pop("gradient"), given["params"]
        made = getattr(optim, name)(**given)
        [weight] = made.param_groups[0]["params"]
        try:
            weight.grad = gradient
        except (TypeError, RuntimeError, ValueError) as refused:
            raise TypeError(f"gradient must fit params, got what torch itself refuses: {refused}") from None
        made.step()
        return [params[0].detach().clone() if isinstance(params, (list, tuple)) else weight.detach()]

    def expected(given):
        h = {"momentum": 0.0, "nesterov": False, "eps": 0.0, "betas": (0.0, 0.0), "lr_decay": 0.0} | given
        flag(h["nesterov"])
        lr, (beta1, beta2) = number(given["lr"]), map(number, h["betas"])
        beta1 = number(h["momentum"]) if name == "SparseSGD" else beta1
        number(h["lr_decay"])
        corrected = lr * np.sqrt(1 - beta2) / (1 - beta1) if rule == "adam" else lr
        hyper = Hyper(lr, corrected, beta1, beta2, number(h["eps"]), 0.0, flag(given["maximize"]), False)
        weight = array(given["params"][0])
        initial = number(given.get("initial_accumulator_value", 0.0))
        shape = weight.shape[:1] if rule == "rowwise_adagrad" else weight.shape
        states = [np.full(shape, initial) for _ in range(2 if rule == "adam" else 1)]
        if given["gradient"] is None:
            return [weight]
        gradient = given["gradient"]
        assert gradient.layout == torch.sparse_coo, "a gradient that is not sparse was taken"
        rule_used = "nesterov" if h["nesterov"] else "sgd" if name == "SparseSGD" and beta1 == 0 else rule
        rows = array(gradient._values()), array(gradient._indices())[0].astype(int)
        return [oracle.sparse_update(rule_used, weight, states, rows[1], rows[0], None, None, hyper)[0]]

    return Call(arguments, run, expected)


def _mba_arguments(rng):
    return {"coeff": 0.1, "counts": counts_of_rows(rng), "padding_idx": 2, "decoupled": False}


def _run_mba(given):
    made = dk.MBA(**given)
    return [made.coeff, _counted(made.counts.values), made.padding_idx, made.decoupled]


def _mba_expected(given):
    padding_idx = None if given["padding_idx"] is None else whole(given["padding_idx"])
    return [number(given["coeff"]), _counted(given["counts"]), padding_idx, flag(given["decoupled"])]


def _counted(counts):
    """The counts; of those on the meta device their shape."""
    return list(counts.shape) if counts.device.type == "meta" else array(counts)


def _counts_arguments(rng):
    packed = bool(rng.integers(2))
    given_ids = torch.tensor([0, 1, 1, 4, 5]) if packed else torch.tensor([[0, 1, 1], [4, 5, 0]])
    return {
        "counts": counts_of_rows(rng), "count": str(rng.choice(["samples", "occurrences"])),
        "ids": given_ids, "sample_offsets": torch.tensor([0, 2, 5]) if packed else None,
    }  # fmt: skip


def _run_counts(given):
    made = dk.MBACounts(given["counts"], given["count"])
    made.observe(given["ids"], given["sample_offsets"])
    return [made.values]


def _counts_expected(given):
    counts = array(given["counts"]).copy()
    fields = given["ids"] if isinstance(given["ids"], (list, tuple)) else [given["ids"]]
    samples = [ids(each).reshape(len(each), -1) if each.numel() else [] for each in fields]
    if given["sample_offsets"] is not None:
        offsets = ids(given["sample_offsets"])
        flat = ids(given["ids"])
        samples = [[flat[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]]
    for sample in zip(*samples, strict=True):
        found = np.concatenate(sample)
        for j in np.unique(found) if given["count"] == "samples" else found:
            counts[int(j)] += 1
    return [counts]


# --- how a history may be given ---------------------------------------------------------------------------------------


def _jagged_arguments(rng):
    return {"values": floats(rng, 5, DIM), "offsets": torch.tensor([0, 2, 5])}


def _run_jagged(given):
    made = dk.Jagged(**given)
    return [list(made.values.shape) if made.values.device.type == "meta" else made.values, made.lengths()]


def _jagged_expected(given):
    values, offsets = given["values"], ids(given["offsets"])
    assert len(values) == offsets[-1] and values.layout == torch.strided and not values.is_nested
    return [values, np.diff(offsets)]


def _padded_class_arguments(rng):
    given = _padded_arguments(rng)
    return {name: given[name] for name in ("history", "lengths", "mask", "padding_side")}


def _run_padded_class(given):
    made = dk.Padded(given["history"], given["lengths"], given["mask"], given["padding_side"])
    return [list(made.valid().shape) if made.values.device.type == "meta" else made.valid()]


def _padded_class_expected(given):
    if given["history"].device.type == "meta":
        return [list(given["history"].shape[:2])]
    array(given["history"])
    return [_valid(given)]


def _gather_arguments(rng):
    return {
        "ids": [torch.tensor([0, 1, 1, 4]), torch.tensor([5, 0, 2, 2])], "tables": [floats(rng, ROWS, DIM),
        floats(rng, ROWS, 2)], "offsets": torch.tensor([0, 1, 4]), "sparse": None, "padding_idx": 0,
    }  # fmt: skip


def _run_gather(given):
    made = dk.Gather(**given)
    return [made.rows().detach(), made.lengths() if made.offsets is not None else None]


def _gather_expected(given):
    tables = [given["tables"]] if isinstance(given["tables"], torch.Tensor) else given["tables"]
    given_ids = [given["ids"]] if isinstance(given["ids"], torch.Tensor) else given["ids"]
    assert given["sparse"] is None or flag(given["sparse"]) in (True, False)
    rows = [array(table)[ids(each)] for table, each in zip(tables, given_ids, strict=True)]
    offsets = None if given["offsets"] is None else ids(given["offsets"])
    return [np.concatenate(rows, -1), None if offsets is None else offsets[1:] - offsets[:-1]]


CALLS: dict[str, Call] = {
    "local_activation": Call(_packed_arguments, _run_packed, _packed_expected),
    "LocalActivationUnit": Call(_module_arguments, _run_module, _module_expected),
    "LocalActivationUnit()": Call(_padded_arguments, _run_padded, _padded_expected),
    "Dice": Call(_dice_module_arguments, _run_dice_module, _dice_module_expected),
    "dice": Call(_dice_arguments, _run_dice, _dice_expected),
    "mba_penalty": Call(_penalty_arguments, _run_penalty, _penalty_expected),
    "sparse_update": Call(_update_arguments, _run_update, _update_expected),
    **{name: _optimizer(name) for name in _OPTIMIZERS},
    "MBA": Call(_mba_arguments, _run_mba, _mba_expected),
    "MBACounts": Call(_counts_arguments, _run_counts, _counts_expected),
    "Jagged": Call(_jagged_arguments, _run_jagged, _jagged_expected),
    "Padded": Call(_padded_class_arguments, _run_padded_class, _padded_class_expected),
    "Gather": Call(_gather_arguments, _run_gather, _gather_expected),
}
