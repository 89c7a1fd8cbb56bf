"""The training loop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from din_kernels.data import Batch, Interactions, Samples, Split, batches, category_counts, item_counts
from din_kernels.models import NAMES
from din_kernels.models.base import Model
from din_kernels.models.config import DINConfig
from din_kernels.training import checkpoint as checkpoints
from din_kernels.training import metrics
from din_kernels.training.evaluation import evaluate
from din_kernels.training.optimizers import Optimizers
from din_kernels.training.options import TrainingOptions
from din_kernels.training.timing import Stopwatch


def sizes_of(interactions: Interactions) -> dict[str, int]:
    """What table rows in a config file may be called: "items", "categories", "users"."""
    return {
        "items": interactions.n_items,
        "categories": interactions.n_categories,
        "users": interactions.n_users,
    }


def build(name: str, config: DINConfig, seed: int = 0) -> Model:
    """The model "din" or "embedding-mlp", its initialization fixed by `seed`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"model must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    torch.manual_seed(seed)
    return NAMES[name](config)


def table_counts(config: DINConfig, samples: Samples, interactions: Interactions) -> dict[str, torch.Tensor]:
    """`[V]` per table of the config: n_j, the (history, candidate) pairs of `samples` in which id j appears.

    Raises:
        ValueError: a field other than item, category and user, or a table that several of them share.
    """
    count = {
        "item": lambda: item_counts(samples, interactions, config.max_length),
        "category": lambda: category_counts(samples, interactions, config.max_length),
        "user": lambda: np.bincount(samples.user, minlength=interactions.n_users) * samples.candidates.shape[1],
    }
    groups = [config.candidate, config.profile, config.context, *map(dict, config.histories.values())]
    field_of: dict[str, str] = {}
    for field, table in (pair for group in groups for pair in group.items()):
        if field not in count:
            raise ValueError(f"mba counts the fields {', '.join(count)}, got field {field!r}")
        if field_of.setdefault(table, field) != field:
            raise ValueError(f"mba counts one field per table, got {field_of[table]!r} and {field!r} in {table!r}")
    return {table: torch.from_numpy(count[field]()) for table, field in field_of.items()}


def train_step(model: Model, optimizers: Optimizers, batch: Batch, stopwatch: Stopwatch | None = None) -> torch.Tensor:
    """One update on the mean cross entropy (paper, equation 2) of a batch; returns the loss, a detached scalar."""
    optimizers.zero_grad()
    logits = model(batch)
    loss = binary_cross_entropy_with_logits(logits, batch.labels.to(logits.dtype))
    loss.backward()
    if stopwatch is not None:
        stopwatch.enter("optimizer")
    optimizers.step()
    return loss.detach()


def train(
    model: Model,
    split: Split,
    interactions: Interactions,
    options: TrainingOptions,
    *,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    output: str | Path | None = None,
    base_auc: float | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Trains `model` in place and evaluates it after every epoch on `split.test`, or on `split.validation`.

    Args:
        checkpoint: file written after every epoch.
        resume: continue from `checkpoint` where it exists; the result is that of an uninterrupted run, bit for bit.
        output: JSON file with the returned history, written after every epoch.
        base_auc: user AUC of a base model, for `rela_impr`.
        progress: whether to show a progress bar.

    Returns:
        One dict per epoch: epoch, loss (mean over the training batches), seconds (per phase of `timing.PHASES`),
        train_seconds, evaluation_seconds and the metrics of `evaluation.evaluate`; rela_impr where base_auc is given.
    """
    held_out = split.validation if split.test is None else split.test
    device = next(model.parameters()).device
    counts = table_counts(model.config, split.train, interactions) if options.mba else None
    optimizers = Optimizers(model, options, counts)
    torch.manual_seed(options.seed)
    history: list[dict[str, Any]] = []
    if resume:
        if checkpoint is None:
            raise ValueError("checkpoint must be given to resume, got None")
        if Path(checkpoint).exists():
            history = checkpoints.resume(checkpoint, model, optimizers, options)
    stopwatch = Stopwatch(torch.cuda.synchronize if device.type == "cuda" else None)
    for epoch in range(len(history), options.epochs):
        optimizers.start_epoch(epoch)
        record = {"epoch": epoch + 1} | _epoch(
            model, split, interactions, options, optimizers, epoch, stopwatch, progress
        )
        begin = time.perf_counter()
        record |= evaluate(model, held_out, interactions, options.eval_batch_size, split.train)
        record["evaluation_seconds"] = time.perf_counter() - begin
        if base_auc is not None:
            record["rela_impr"] = metrics.rela_impr(record["user_auc"], base_auc)
        history.append(record)
        if checkpoint is not None:
            checkpoints.save(checkpoint, model, optimizers, options, history)
        if output is not None:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            Path(output).write_text(json.dumps(history, indent=1) + "\n")
    return history


def _epoch(model, split, interactions, options, optimizers, epoch, stopwatch, progress) -> dict[str, Any]:
    device = next(model.parameters()).device
    model.train()
    order = {"shuffle": True, "seed": options.seed, "epoch": epoch}
    loader = batches(split.train, interactions, options.batch_size, max_length=model.config.max_length, **order)
    bar = tqdm(total=len(loader), desc=f"epoch {epoch + 1}/{options.epochs}", unit="batch", disable=not progress)
    losses = []
    with bar, stopwatch.attached(model):
        stopwatch.reset()
        stopwatch.enter("data")
        for step, batch in enumerate(loader):
            losses.append(train_step(model, optimizers, batch.to(device), stopwatch))
            stopwatch.enter("other")
            if step % 10 == 0:
                bar.set_postfix(loss=f"{losses[-1].item():.4f}", refresh=False)
            bar.update()
            stopwatch.enter("data")
        stopwatch.enter("other")
    seconds = {phase: round(value, 6) for phase, value in stopwatch.seconds.items()}
    loss = torch.stack(losses).double().mean().item() if losses else float("nan")
    return {"loss": loss, "seconds": seconds, "train_seconds": round(sum(seconds.values()), 6)}
