"""Variants of the local activation unit on the same inputs: ours, the reference, and what users write today.

Every variant is a `Calls`: a forward, and a forward with all gradients, in the layout that the variant works in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table

from din_kernels.backends import unavailable, use_backend
from din_kernels.backends.reference.local_activation import activate, padded_unit
from din_kernels.benchmarking.harness import interleaved, require_equal, sgemm_call
from din_kernels.benchmarking.shapes import SHAPES, Inputs, inputs_of, work
from din_kernels.jagged import Jagged

FUSED, REFERENCE = "fused", "reference, packed"
EAGER, COMPILED = "padded, eager", "padded, torch.compile"
FOLDED, BUCKETED = "folded by hand, padded, torch.compile", "length buckets, padded, torch.compile"
COPIES = "fused, a copy of the history per candidate"

# Widths of the length buckets: a history is padded to the next of them.
BUCKETS = (4, 8, 16, 32, 64)
# Pairs that the float64 reference takes at once.
REFERENCE_PAIRS = 50_000


class Calls(NamedTuple):
    """One variant on given inputs."""

    forward: Callable[[], torch.Tensor]  # pooled [Q, D], without a graph
    both: Callable[[], tuple[torch.Tensor, list[torch.Tensor]]]  # pooled, and gradients of history, query, parameters
    rows: Callable[[torch.Tensor], torch.Tensor]  # gradient of the history in the variant's layout -> [N, D]

    def results(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Pooled and every gradient by name, in the layout of `inputs`."""
        pooled, (history, query, *rest) = self.both()
        names = [f"grad {name}" for name, _ in inputs.unit.named_parameters()]
        return {"pooled": pooled.detach(), "grad history": self.rows(history), "grad query": query} | dict(
            zip(names, rest, strict=True)
        )


def calls(name: str, inputs: Inputs, width: int | None = None) -> Calls:
    """The variant `name` on `inputs`; padded ones are padded to `width`, by default to the longest history."""
    if name in (FUSED, REFERENCE):
        return _packed(inputs, "reference" if name == REFERENCE else "cpu")
    if name == COPIES:
        return _copies(inputs)
    lengths = inputs.history.lengths()
    longest = max(1, int(lengths.max())) if width is None else width
    widths = [longest] if name != BUCKETED else [each for each in BUCKETS if each < longest] + [longest]
    function = folded_padded_unit if name == FOLDED else padded_unit
    return _padded(inputs, function if name == EAGER else torch.compile(function, dynamic=False), widths)


def variants_of(shape: str) -> tuple[str, ...]:
    """The variants that make sense on a house shape, ours first."""
    if SHAPES[shape].candidates > 1:
        return (FUSED, COPIES, EAGER, COMPILED, FOLDED)
    padded = (FUSED, EAGER, COMPILED, FOLDED)
    return (*padded, BUCKETED) if shape == "real" else padded  # most of its padded form is padding


def missing(name: str) -> str | None:
    """Why a variant cannot run on this machine, or None."""
    return unavailable("cpu") if name in (FUSED, COPIES) else None


def folded_padded_unit(query, history, mask, weights, biases, features, activation, params, normalize, scale):
    """`padded_unit` for concat with the first layer folded by hand: [B, H1, D] matrices and a batched product."""
    of_query, of_history, of_difference, of_product = weights[0].split(query.shape[-1], 1)
    folded = (of_history - of_difference) + of_product * query.unsqueeze(1)
    shift = query @ (of_query + of_difference).T + biases[0]
    hidden = torch.baddbmm(shift.unsqueeze(1), history, folded.transpose(1, 2))
    for layer in range(1, len(weights)):
        hidden, _ = activate(hidden, activation, params[layer - 1])
        hidden = torch.nn.functional.linear(hidden, weights[layer], biases[layer])
    scores = scale * hidden.squeeze(-1)
    if normalize == "softmax":
        w = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1).nan_to_num(0.0)
    else:
        w = torch.where(mask, scores, 0.0)
    return torch.matmul(w.unsqueeze(1), history).squeeze(1)


def _packed(inputs: Inputs, backend: str) -> Calls:
    unit = inputs.unit
    parameters = list(unit.parameters())

    def run(query, values):
        with use_backend(backend, ops=("local_activation",)):
            return unit(query, Jagged(values, inputs.history.offsets), query_to_user=inputs.query_to_user)

    @torch.no_grad()
    def forward():
        return run(inputs.query, inputs.history.values)

    def both():
        query, values = inputs.query.detach().requires_grad_(), inputs.history.values.detach().requires_grad_()
        pooled = run(query, values)
        return pooled, torch.autograd.grad(pooled, [values, query, *parameters], inputs.grad)

    return Calls(forward, both, lambda grad: grad)


def _copies(inputs: Inputs) -> Calls:
    user = inputs.query_to_user
    lengths = inputs.history.lengths()[user]
    first = inputs.history.offsets[:-1][user]
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    row = torch.repeat_interleave(first - offsets[:-1], lengths) + torch.arange(int(offsets[-1]))
    copied = inputs._replace(history=Jagged(inputs.history.values[row], offsets), query_to_user=None)
    each = _packed(copied, "cpu")
    return each._replace(rows=lambda grad: torch.zeros_like(inputs.history.values).index_add_(0, row, grad))


def _padded(inputs: Inputs, function: Callable[..., torch.Tensor], widths: Sequence[int]) -> Calls:
    """Candidates in buckets: those whose history fits a width and no smaller one are padded to it, a copy for each."""
    unit, history = inputs.unit, inputs.history
    options = {
        "features": unit.features,
        "activation": unit.activation,
        "params": unit._activation_params(),
        "normalize": unit.normalize,
        "scale": unit.scale,
    }
    weights = [layer.weight for layer in unit.linears]
    biases = [layer.bias for layer in unit.linears]
    parameters = list(unit.parameters())
    user = torch.arange(len(history)) if inputs.query_to_user is None else inputs.query_to_user
    lengths = history.lengths()[user]
    bucket = torch.bucketize(lengths, torch.tensor(widths[:-1], dtype=lengths.dtype))
    chosen = [each for at in range(len(widths)) if len(each := (bucket == at).nonzero().flatten())]
    order = torch.argsort(torch.cat(chosen))
    with torch.no_grad():
        padded = [history.to_padded(widths[int(bucket[each[0]])])[user[each]] for each in chosen]
        masks = [torch.arange(each.shape[1]) < lengths[at, None] for each, at in zip(padded, chosen, strict=True)]
        queries = [inputs.query[at] for at in chosen]
        grads = [inputs.grad[at] for at in chosen]

    def run(queries, padded):
        return [
            function(query, rows, mask, weights, biases, **options)
            for query, rows, mask in zip(queries, padded, masks, strict=True)
        ]

    @torch.no_grad()
    def forward():
        pooled = run(queries, padded)
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled)[order]

    def both():
        leaves = [[each.detach().requires_grad_() for each in group] for group in (padded, queries)]
        pooled = run(leaves[1], leaves[0])
        found = torch.autograd.grad(pooled, [*leaves[0], *leaves[1], *parameters], grads)
        if len(pooled) == 1:
            return pooled[0], found
        at = len(pooled)
        return torch.cat(pooled)[order], [list(found[:at]), torch.cat(found[at : 2 * at])[order], *found[2 * at :]]

    def rows(grad):
        result = torch.zeros_like(history.values)
        for each, at, mask in zip([grad] if isinstance(grad, torch.Tensor) else grad, chosen, masks, strict=True):
            candidate, column = mask.nonzero(as_tuple=True)
            result.index_add_(0, history.offsets[:-1][user[at]][candidate] + column, each[mask])
        return result

    return Calls(forward, both, rows)


def reference_results(inputs: Inputs, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The reference's results in `dtype`, the candidates' own histories some at a time so that its features fit."""
    unit = _cast(inputs.unit, dtype)
    values, query, grad = (each.to(dtype) for each in (inputs.history.values, inputs.query, inputs.grad))
    if inputs.query_to_user is not None:
        each = Inputs(unit, query, Jagged(values, inputs.history.offsets), inputs.query_to_user, grad)
        return calls(REFERENCE, each).results(each)
    offsets = inputs.history.offsets
    found, begin = [], 0
    while begin < len(query):
        fits = int(torch.searchsorted(offsets, offsets[begin] + REFERENCE_PAIRS, right=True)) - 1
        end = min(len(query), max(begin + 1, fits))
        part = offsets[begin : end + 1]
        each = Inputs(unit, query[begin:end], Jagged(values[part[0] : part[-1]], part - part[0]), None, grad[begin:end])
        found.append(calls(REFERENCE, each).results(each))
        begin = end
    rowwise = ("pooled", "grad history", "grad query")
    parts = {name: [each[name] for each in found] for name in found[0]}
    return {name: torch.cat(each) if name in rowwise else torch.stack(each).sum(0) for name, each in parts.items()}


def _cast(unit, dtype):
    made = type(unit)(unit.dim, unit.hidden, unit.activation, unit.features, unit.normalize, unit.scale, dtype=dtype)
    made.load_state_dict(unit.state_dict())
    return made.to(next(unit.parameters()).device).train(unit.training)


def allowed_error(inputs: Inputs) -> float:
    """How many times the bound a variant may err.

    The bound is made for sums over some hundred rows. The gradient of the last bias is one number, to which all pairs
    add and of which 1e-3 or less remains: its rounding is chance, on either side, and grows with the root of their
    number.
    """
    return 2 * max(1.0, (inputs.pairs / 100_000) ** 0.5)


def equal_variants(
    inputs: Inputs, names: Sequence[str], width: int | None = None
) -> tuple[dict[str, Calls], dict[str, str]]:
    """The variants that run here, each held to the reference first, and why the others do not.

    Raises:
        AssertionError: a variant's pooled rows or gradients are not the reference's.
    """
    exact = reference_results(inputs, torch.float64)
    own = reference_results(inputs, inputs.query.dtype)
    made, reasons = {}, {}
    for name in names:
        reason = missing(name)
        if reason is None:
            variant = calls(name, inputs, width)
            try:
                found = variant.results(inputs)
            except Exception as error:  # torch.compile fails in many ways where no C++ compiler is
                if not name.endswith("torch.compile"):
                    raise
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            else:
                require_equal(name, found, own, exact, allowed_error(inputs))
                variant.forward()
                made[name] = variant
        if reason is not None:
            reasons[name] = reason
    return made, reasons


def measure(
    inputs: Inputs, names: Sequence[str], seconds: float = 20.0, width: int | None = None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Times the variants in turns, forward and forward + backward, equality asserted first.

    Args:
        inputs: as from `shapes.inputs_of`.
        names: variants.
        seconds: for all timed rounds together.
        width: of the padded variants; by default the longest history.

    Returns:
        One row per variant: for "forward" and "both" the milliseconds p20, median, p80, and how many times the fused
        unit's median that is; for the fused unit also its share of the machine's sgemm rate, taken in the same rounds.
        And the reason for each variant that does not run here.
    """
    made, reasons = equal_variants(inputs, names, width)
    sgemm, operations = sgemm_call()
    rows: dict[str, dict[str, Any]] = {name: {"variant": name} for name in made}
    for what, factor, share in (("forward", 1, 0.3), ("both", 4, 0.7)):
        timed = {name: getattr(variant, what) for name, variant in made.items()}
        timings = interleaved(timed | {"sgemm": sgemm}, seconds * share)
        rate = operations / timings.pop("sgemm").median
        for name, timing in timings.items():
            row = rows[name]
            row[f"{what}_ms"] = [round(each * 1e3, 4) for each in timing[:3]]
            row[f"{what}_rounds"] = timing.rounds
            row[f"{what}_sgemm_gflops"] = round(rate / 1e9, 1)
            if FUSED in timings:
                row[f"{what}_ratio"] = round(timing.median / timings[FUSED].median, 3)
            if name == FUSED:
                row[f"{what}_share"] = round(factor * work(inputs) / timing.median / rate, 3)
    return list(rows.values()), reasons


def time_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """The rows of `measure` for reading."""
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    made.add_column("variant", no_wrap=True)
    for name in ("ms", "p20 .. p80", "fused is faster", "of sgemm"):
        made.add_column(name, justify="right", no_wrap=True)
    for what, heading in (("forward", "forward"), ("both", "forward + backward")):
        made.add_section()
        made.add_row(f"[bold]{heading}[/bold]")
        for row in rows:
            p20, median, p80 = row[f"{what}_ms"]
            ratio, share = row.get(f"{what}_ratio"), row.get(f"{what}_share")
            made.add_row(
                row["variant"],
                f"{median:.2f}",
                f"{p20:.2f} .. {p80:.2f}",
                "" if ratio is None else f"{ratio:.1f}x",
                "" if share is None else f"{share:.2f}",
            )
    return made


def prepare(shape: str):
    """For `memory.peak_bytes`: the fused unit, forward and backward, on a house shape."""
    inputs = inputs_of(SHAPES[shape])
    return calls(FUSED, inputs).both
