"""From ids to the updated table: gather, backward and optimizer step on one large embedding table.

Ours with and without mini-batch aware regularization, torch's optimizers on nn.Embedding(sparse=True), and, where
fbgemm-gpu-cpu is installed, FBGEMM's table-batched embedding (bags of one), whose backward holds the step. Peers never
regularize. With --sizes: the same number of ids and duplicates in tables of 100,000 to 10,000,000 rows.

Freed memory stays with the process, for all variants alike. By default glibc hands 13 MB of gathered rows back to the
system or not, depending on what else lies on the heap, and fresh memory costs 3 ms of page faults: more than a step.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from din_kernels import MBA, optim
from din_kernels.backends import use_backend
from din_kernels.benchmarking import harness
from din_kernels.commands.console import wide_console

ENTRIES, DIM, LR = 52_000, 64, 0.01
# With this exponent 52,000 draws from 1,000,000 rows hold about 11,000 different ones.
ZIPF = 1.153
OURS = {
    "sgd": optim.SparseSGD,
    "adagrad": optim.SparseAdagrad,
    "rowwise_adagrad": optim.SparseRowWiseAdagrad,
    "adam": optim.SparseAdam,
}
TORCH = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}
FBGEMM = {"sgd": "EXACT_SGD", "rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD"}
FUSED, FUSED_MBA, REFERENCE = "fused", "fused + MBA", "reference"
PEER, TBE = "nn.Embedding + torch.optim", "FBGEMM TBE"


def zipf_ids(rows: int, entries: int = ENTRIES, seed: int = 0) -> torch.Tensor:
    """`[entries]` ids of a table whose r-th most frequent row has probability ~ r^-ZIPF, popular rows scattered."""
    random = np.random.default_rng(seed)
    cumulative = np.cumsum(np.arange(1, rows + 1) ** -ZIPF)
    ranks = np.searchsorted(cumulative, random.random(entries) * cumulative[-1])
    return torch.from_numpy(random.permutation(rows)[ranks])


class Stepper:
    """One table and what updates it; calling it takes one step from ids and the gradient of the gathered rows."""

    def __init__(self, rows: int, seed: int = 0):
        self.table = nn.Embedding(rows, DIM, sparse=True)
        torch.manual_seed(seed)
        nn.init.normal_(self.table.weight, std=0.01)

    def with_optimizer(self, optimizer: torch.optim.Optimizer) -> Callable[[torch.Tensor, torch.Tensor], None]:
        def step(ids: torch.Tensor, grad: torch.Tensor) -> None:
            optimizer.zero_grad()
            self.table(ids).backward(grad)
            optimizer.step()

        return step


def variants(rule: str, rows: int, counts: torch.Tensor, which: list[str]) -> dict[str, tuple[Callable, Callable]]:
    """(step, table as it stands) by name, of those in `which` that exist for the rule and run here."""
    made = {}
    for name in which:
        if name in (FUSED, FUSED_MBA, REFERENCE):
            stepper = Stepper(rows)
            mba = None if name == FUSED else MBA(0.01, counts)
            optimizer = OURS[rule](stepper.table.parameters(), lr=LR, mba=mba)
            made[name] = stepper.with_optimizer(optimizer), stepper.table.weight.detach
        elif name == PEER and rule in TORCH:
            stepper = Stepper(rows)
            made[name] = (
                stepper.with_optimizer(TORCH[rule](stepper.table.parameters(), lr=LR)),
                stepper.table.weight.detach,
            )
        elif name == TBE and rule in FBGEMM:
            table = tbe(rule, rows)
            if table is not None:
                made[name] = table
    return made


def tbe(rule: str, rows: int) -> tuple[Callable, Callable] | None:
    """FBGEMM's table of the rule, or None where FBGEMM is not installed."""
    try:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )
    except ImportError:
        return None
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=getattr(EmbOptimType, FBGEMM[rule]),
        learning_rate=LR,
        eps=1e-8,
    )
    (weight,) = table.split_embedding_weights()
    weight.copy_(Stepper(rows).table.weight.detach())
    offsets: dict[int, torch.Tensor] = {}

    def step(ids: torch.Tensor, grad: torch.Tensor) -> None:
        if len(ids) not in offsets:
            offsets[len(ids)] = torch.arange(len(ids) + 1)
        table(ids, offsets[len(ids)]).backward(grad)

    return step, lambda: weight.detach()


def assert_equal(rule: str) -> None:
    """Three steps on a smaller table: ours as the reference's, the peers as ours without regularization."""
    rows, generator = 5000, torch.Generator().manual_seed(0)
    counts = torch.randint(0, 50, (rows,), generator=generator)
    made = variants(rule, rows, counts, [FUSED, FUSED_MBA, REFERENCE, PEER, TBE])
    for step in range(3):
        ids, grad = zipf_ids(rows, 4000, step), torch.randn(4000, DIM, generator=generator)
        for name, (run, _) in made.items():
            with use_backend("reference" if name == REFERENCE else "cpu", ops=("sparse_update",)):
                run(ids, grad)
    tables = {name: weight() for name, (_, weight) in made.items()}
    torch.testing.assert_close(tables[FUSED_MBA], tables[REFERENCE], rtol=1e-5, atol=1e-6)
    for name in (PEER, TBE):
        if name in tables:
            torch.testing.assert_close(tables[name], tables[FUSED], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m)
    assert (tables[FUSED_MBA] != tables[FUSED]).any()


def compare(rules: list[str], rows: int, seconds: float) -> list[dict]:
    """One row per rule and variant: milliseconds, and how many times as fast as it the fused step with MBA is."""
    generator, result = torch.Generator().manual_seed(0), []
    ids, counts = zipf_ids(rows), torch.randint(0, 50, (rows,), generator=generator)
    grad = torch.randn(ENTRIES, DIM, generator=generator)
    for rule in rules:
        assert_equal(rule)
        made = variants(rule, rows, counts, [FUSED_MBA, FUSED, TBE, PEER])
        timings = harness.interleaved(
            {name: lambda run=run: run(ids, grad) for name, (run, _) in made.items()},
            seconds / len(rules),
            (20, 2000),
            5,
        )
        best = timings[FUSED_MBA]
        for name, timing in timings.items():
            result.append(
                {
                    "rule": rule,
                    "variant": name,
                    "ms": timing.median * 1e3,
                    "p20": timing.p20 * 1e3,
                    "p80": timing.p80 * 1e3,
                    "over fused + MBA": timing.median / best.median,
                }
            )
    return result


def over_sizes(rule: str, seconds: float) -> list[dict]:
    """The fused step with MBA in tables of several sizes: the same duplicates, rows spread over the whole table."""
    sizes = (100_000, 1_000_000, 10_000_000)
    ids, grad = zipf_ids(sizes[0]), torch.randn(ENTRIES, DIM, generator=torch.Generator().manual_seed(0))
    calls = {}
    for rows in sizes:
        spread, counts = ids * (rows // sizes[0]), torch.full((rows,), 7)
        run, _ = variants(rule, rows, counts, [FUSED_MBA])[FUSED_MBA]
        calls[rows] = lambda run=run, spread=spread: run(spread, grad)
        calls[rows]()  # the states exist from here on
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timings = harness.interleaved(calls, seconds, (20, 2000), 5)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return [
        {
            "rule": rule,
            "rows": rows,
            "ms": timing.median * 1e3,
            "p20": timing.p20 * 1e3,
            "over the smallest": timing.median / timings[sizes[0]].median,
            "peak memory grew by, MB (all sizes)": grown,
        }
        for rows, timing in timings.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=sorted(OURS), default=list(OURS))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sizes", action="store_true", help="tables of several sizes instead of several variants")
    parser.add_argument("--seconds", type=float, default=40.0, help="timed seconds")
    harness.add_save(parser)
    options = parser.parse_args()
    harness.keep_freed_memory()
    console = wide_console()
    if options.sizes:
        rows = [row for rule in options.rules for row in over_sizes(rule, options.seconds / len(options.rules))]
        title, name, case = "one step in tables of several sizes", "sparse_sizes", "all"
    else:
        rows = compare(options.rules, options.rows, options.seconds)
        unique = len(zipf_ids(options.rows).unique())
        title = f"ids to updated table: {options.rows} x {DIM}, {ENTRIES} Zipf ids, {unique} unique"
        name, case = "sparse_update", f"{options.rows}x{DIM}"
    console.print(harness.table(title, rows))
    if options.save:
        harness.save(options.save, name, case, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
