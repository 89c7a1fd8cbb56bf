"""The other ops held to the reference, as `verification` does with the unit: Dice, rows by id, embedding tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from din_kernels.backends import use_backend
from din_kernels.gather import Gather
from din_kernels.ops import dice, local_activation, mba_penalty, sparse_update
from din_kernels.ops.sparse_update import RULES, Hyper, Table
from din_kernels.verification import Deviation, compared

ROWS, DIM, ENTRIES = 60, 19, 257


class OpCase(NamedTuple):
    """One call of an op: `results(dtype, device)` by name, whatever backend is in force."""

    op: str
    name: str
    results: Callable[[torch.dtype, str], dict[str, torch.Tensor]]


def op_cases(seed: int = 0) -> Iterator[OpCase]:
    """Every op and its main options, widths that no vector length divides."""
    for training in (True, False):
        for masked in (True, False):
            name = f"{'training' if training else 'evaluation'}{', masked' if masked else ''}"
            yield OpCase("dice", name, lambda *to, t=training, m=masked: _dice(seed, t, m, *to))
    for sparse in (True, False):
        name = f"rows by id, {'sparse' if sparse else 'dense'} gradients"
        yield OpCase("local_activation", name, lambda *to, s=sparse: _gather(seed, s, *to))
        name = f"{'sparse' if sparse else 'dense'} gradient"
        yield OpCase("mba_penalty", name, lambda *to, s=sparse: _penalty(seed, s, *to))
    for rule in RULES:
        for regularized in (True, False):
            name = rule + (" + MBA" if regularized else "")
            yield OpCase("sparse_update", name, lambda *to, r=rule, c=regularized: _update(seed, r, c, *to))


def op_deviations(case: OpCase, backend: str, dtype: torch.dtype, device: str = "cpu") -> Iterator[Deviation]:
    """As `verification.deviations`: errors against float64, within twice the reference's own in `dtype` and a floor.

    Raises:
        BackendError: the backend does not serve this case.
    """
    found = {}
    for name, each in ((backend, dtype), ("reference", dtype), ("reference", torch.float64)):
        with use_backend(name):
            results = case.results(each, device if name == backend else "cpu")
        found[name, each] = {key: value.detach().cpu().to_dense().double() for key, value in results.items()}
    yield from compared(found[backend, dtype], found["reference", dtype], found["reference", torch.float64], dtype)


class _Random:
    """Reproducible inputs, rounded to the dtype that is checked before they are widened to the one that is computed."""

    def __init__(self, seed: int, dtype: torch.dtype, device: str):
        self._generator = torch.Generator().manual_seed(seed)
        self._device, self._dtype = device, dtype

    def normal(self, *shape: int) -> torch.Tensor:
        # Multiples of 1/64 below 4 are numbers of every dtype, so that all of them compute on the same inputs.
        drawn = torch.randn(*shape, generator=self._generator, dtype=torch.float64).clamp(-3.9, 3.9)
        return ((drawn * 64).round() / 64).to(self._device, self._dtype)

    def ids(self, high: int, count: int) -> torch.Tensor:
        return torch.randint(0, high, (count,), generator=self._generator).to(self._device)


def _dice(seed, training, masked, dtype, device):
    random = _Random(seed, dtype, device)
    x, alpha = random.normal(ENTRIES, DIM).requires_grad_(), random.normal(DIM).requires_grad_()
    mean, var = random.normal(DIM), random.normal(DIM).square() + 0.125
    mask = random.ids(3, ENTRIES) > 0 if masked else None
    y, mean, var, _ = dice(x, alpha, mean, var, training=training, mask=mask)
    grads = torch.autograd.grad(y, [x, alpha], random.normal(ENTRIES, DIM))
    return {"y": y, "mean": mean, "var": var, "grad x": grads[0], "grad alpha": grads[1]}


def _gather(seed, sparse, dtype, device):
    random = _Random(seed, dtype, device)
    widths = (12, DIM - 12)
    tables = [random.normal(ROWS, width).requires_grad_() for width in widths]
    query_tables = [random.normal(ROWS, width).requires_grad_() for width in widths]
    offsets = torch.tensor([0, 0, 9, 40, 41, ENTRIES], device=device)
    history = Gather([random.ids(ROWS, ENTRIES) for _ in widths], tables, offsets, sparse)
    query = Gather([random.ids(ROWS, 5) for _ in widths], query_tables, sparse=sparse)
    weights = [(random.normal(b, a) / 8).requires_grad_() for a, b in ((4 * DIM, 8), (8, 1))]
    biases = [random.normal(b).requires_grad_() for b in (8, 1)]
    pooled = local_activation(query, history, weights, biases)
    leaves = {f"table {k}": table for k, table in enumerate([*tables, *query_tables])}
    leaves |= {f"weights[{k}]": each for k, each in enumerate(weights)}
    leaves |= {f"biases[{k}]": each for k, each in enumerate(biases)}
    grads = torch.autograd.grad(pooled, list(leaves.values()), random.normal(5, DIM))
    return {"pooled": pooled} | {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def _penalty(seed, sparse, dtype, device):
    random = _Random(seed, dtype, device)
    weight = random.normal(ROWS, DIM).requires_grad_()
    ids, counts = random.ids(ROWS, ENTRIES), random.ids(50, ROWS)
    penalty = mba_penalty(weight, ids, counts, coeff=0.5, padding_idx=0, sparse=sparse)
    return {"penalty": penalty, "grad weight": torch.autograd.grad(penalty, weight)[0]}


def _update(seed, rule, regularized, dtype, device):
    random = _Random(seed, dtype, device)
    weight, grads, ids = random.normal(ROWS, DIM), random.normal(ENTRIES, DIM), random.ids(ROWS, ENTRIES)
    wide = torch.promote_types(dtype, torch.float32)
    shapes = {"VD": (ROWS, DIM), "V": (ROWS,)}
    states = [random.normal(*shapes[each]).to(wide).square() for each in RULES[rule]]
    hyper = Hyper(lr=0.125, step=0.125, beta1=0.875, beta2=0.9375, eps=1e-3, coeff=0.5 if regularized else 0.0)
    counts = random.ids(50, ROWS) if regularized else None
    sparse_update([Table(weight, states, ids, grads, hyper, counts, padding_idx=0)], rule)
    return {"weight": weight} | {f"state {k}": state for k, state in enumerate(states)}
