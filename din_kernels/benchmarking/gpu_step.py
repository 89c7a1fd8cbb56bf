"""A whole training step of DIN on a GPU: our unit, the packed eager one of the reference in its place, and
torch.compile of the model with that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from din_kernels.backends import use_backend
from din_kernels.benchmarking import gpu, gpu_profile
from din_kernels.data.batches import Batch
from din_kernels.models import DINConfig
from din_kernels.training import Optimizers, TrainingOptions, build, train_step

PRECISIONS = ("fp32", "tf32", "bf16 autocast")
PACKED, COMPILED = "packed, eager", "packed, torch.compile"


class Sizes(NamedTuple):
    """Of the model and of a batch."""

    items: int = 10_000_000
    categories: int = 10_000
    dim: int = 64
    users: int = 4096
    candidates: int = 2
    length: int = 200  # lengths are uniform on 1..length


SIZES = Sizes()


@contextlib.contextmanager
def precision(name: str, device: str = "cuda") -> Iterator[None]:
    """fp32, tf32 or bf16 autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if name == "fp32" else "high")
    try:
        with torch.autocast(device, torch.bfloat16, enabled=name == "bf16 autocast"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def batch_of(sizes: Sizes, device: str) -> Batch:
    """Random ids, most of them from the head of the table."""
    generator = torch.Generator().manual_seed(0)

    def ids(high: int, count: int) -> torch.Tensor:
        drawn = torch.rand(count, generator=generator, dtype=torch.float64)
        return (high**drawn).long().clamp(max=high - 1)

    lengths = torch.randint(1, sizes.length + 1, (sizes.users,), generator=generator)
    behaviours, candidates = int(lengths.sum()), sizes.users * sizes.candidates
    users = torch.arange(sizes.users)
    made = Batch(
        users=users,
        history_items=ids(sizes.items, behaviours),
        history_categories=ids(sizes.categories, behaviours),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        candidate_items=ids(sizes.items, candidates),
        candidate_categories=ids(sizes.categories, candidates),
        query_to_user=users.repeat_interleave(sizes.candidates),
        labels=torch.arange(candidates).remainder(sizes.candidates).eq(0).float(),
        sample_user=users.repeat_interleave(sizes.candidates),
    )
    return made.to(device)


def steps(backends: Sequence[str], sizes: Sizes, device: str) -> dict[str, Callable[[], torch.Tensor]]:
    """One step by name, all of one model."""
    with torch.device(device):
        model = build("din", DINConfig.default(sizes.items, sizes.categories, sizes.dim, sparse=True))
    # A step changes next to nothing, so that all variants see the same losses.
    optimizers = Optimizers(model, TrainingOptions(optimizer="sparse-rowwise-adagrad", lr=1e-9))
    batch = batch_of(sizes, device)

    def step(module, name: str) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with use_backend(name, ops=("local_activation",)):
                return train_step(module, optimizers, batch)

        return run

    made = {name: step(model, name) for name in backends}
    made[PACKED] = step(model, "reference")
    made[COMPILED] = step(torch.compile(model, dynamic=False), "reference")
    return made


def benchmark(
    deadline: float,
    backends: Sequence[str],
    precisions: Sequence[str] = PRECISIONS,
    sizes: Sizes = SIZES,
    device: str = "cuda",
) -> Iterator[dict[str, Any]]:
    """A row per precision: variants with time, kernels, host's time and memory; ratios to our fastest."""
    made = None
    for name in precisions:
        if time.monotonic() > deadline:
            yield {"precision": name, "skipped": "no time left"}
            continue
        made = made or steps(backends, sizes, device)
        with precision(name, device):
            row = _row(made, backends)
        yield {"precision": name} | row


def compile_all(backends: Sequence[str], name: str) -> None:
    """Runs every variant that compiles once under one precision."""
    with precision(name):
        for variant, call in steps(backends, SIZES, "cuda").items():
            if variant != PACKED:
                call()


def _row(made, backends) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    runs, skipped = {}, {}
    torch._dynamo.reset()
    expected = made[PACKED]().item()
    for name, call in made.items():
        try:
            loss = call().item()
            if not abs(loss - expected) <= 1e-2 * abs(expected):
                raise AssertionError(f"the loss must be within 1 % of {expected} of the packed eager unit, got {loss}")
            found[name] = {"peak_mb": gpu.peak_mb(call)}
        except Exception as error:  # what fails must not hide the others
            skipped[name] = gpu.reason_of(error)
            torch.cuda.empty_cache()
        else:
            runs[name] = call
    for name, times in gpu.timed(runs, backends).items():
        found[name] |= times | gpu_profile.profiled(runs[name])
    return {"variants": found, "skipped": skipped}
