"""The training loop."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from din_kernels import files
from din_kernels.data import Batch, Interactions, Samples, Split, batches
from din_kernels.data.batches import Batches
from din_kernels.models import NAMES
from din_kernels.models.base import Model
from din_kernels.models.config import DINConfig
from din_kernels.training import checkpoint as checkpoints
from din_kernels.training import metrics
from din_kernels.training.errors import Diverged, Interrupted
from din_kernels.training.evaluation import evaluate
from din_kernels.training.optimizers import Optimizers
from din_kernels.training.options import TrainingOptions
from din_kernels.training.tables import require_fit, table_counts
from din_kernels.training.timing import Stopwatch


def build(name: str, config: DINConfig, seed: int = 0) -> Model:
    """The model "din" or "embedding-mlp", its initialization fixed by `seed`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"model must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    torch.manual_seed(seed)
    return NAMES[name](config)


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

    Everything that is given is tried before the first step: the samples, the model against the data, and whether both
    files can be written.

    Args:
        checkpoint: file written after every epoch.
        resume: continue from `checkpoint` where it exists; the result is that of an uninterrupted run, bit for bit.
        output: JSON file with the returned history, written after every epoch; a metric that is nan is null there.
        base_auc: user AUC of a base model, for `rela_impr`; nan or 0.5, where that is not defined, gives nan.
        progress: whether to show a progress bar.

    Returns:
        One dict per epoch: epoch, loss (mean over the training batches), seconds (per phase of `timing.PHASES`),
        train_seconds, evaluation_seconds and the metrics of `evaluation.evaluate`; rela_impr where base_auc is given.
        `notes` is there where a metric is nan, and says why.

    Raises:
        ValueError: no samples to train on or to evaluate, a model that does not suit the data, resume without a
            checkpoint, one path for both files, a base_auc outside 0..1.
        OSError: a file that cannot be written.
        CheckpointError: a checkpoint that is damaged or of another run.
        Diverged: the loss or a score is no longer finite.
        Interrupted: a KeyboardInterrupt in an epoch; says what was kept.
    """
    held_out = require_samples(split, interactions)
    require_fit(model.config, interactions)
    if base_auc is not None and (base_auc < 0 or base_auc > 1):
        raise ValueError(f"base_auc must lie in 0..1, got {base_auc}")
    if resume and checkpoint is None:
        raise ValueError("checkpoint must be given to resume, got None")
    require_paths(checkpoint, output, checkpoints.state_bytes(model))

    device = next(model.parameters()).device
    counts = table_counts(model.config, split.train, interactions) if options.mba else None
    optimizers = Optimizers(model, options, counts)
    torch.manual_seed(options.seed)
    history: list[dict[str, Any]] = []
    if resume and checkpoint is not None and Path(checkpoint).exists():
        history = checkpoints.resume(checkpoint, model, optimizers, options)
        if output is not None:
            files.write_json(output, history, "output")
    saved = len(history)
    stopwatch = Stopwatch(torch.cuda.synchronize if device.type == "cuda" else None)
    try:
        for epoch in range(len(history), options.epochs):
            optimizers.start_epoch(epoch)
            length = model.config.max_length
            loader = batches(split.train, interactions, options.batch_size, True, options.seed, epoch, length)
            title = f"epoch {epoch + 1}/{options.epochs}"
            record = {"epoch": epoch + 1} | _epoch(model, loader, optimizers, stopwatch, title, progress)
            begin = time.perf_counter()
            record |= evaluate(model, held_out, interactions, options.eval_batch_size, split.train)
            record["evaluation_seconds"] = time.perf_counter() - begin
            history.append(record if base_auc is None else _compared(record, base_auc))
            if checkpoint is not None:
                checkpoints.save(checkpoint, model, optimizers, options, history)
                saved = len(history)
            if output is not None:
                files.write_json(output, history, "output")
    except KeyboardInterrupt:
        raise Interrupted(epoch + 1, options.epochs, checkpoint, saved) from None
    except Diverged as error:
        raise Diverged(f"epoch {epoch + 1} with lr {options.lr}: {error}{_kept(checkpoint, saved)}") from None
    return history


def require_samples(split: Split, interactions: Interactions) -> Samples:
    """The held-out samples of a split that holds both kinds.

    Raises:
        ValueError: no training samples, or none that are held out; says how long histories are and have to be.
    """
    validated = split.test is None and split.validation is not None
    held_out = split.validation if validated else split.test
    if not len(split.train):
        raise ValueError(_too_short("train", interactions))
    if held_out is None or not len(held_out):
        raise ValueError(_too_short("validation" if validated else "test", interactions))
    return held_out


def _too_short(kind: str, interactions: Interactions) -> str:
    need = "a rated item needs another of its user before it"
    if interactions.labels is None:
        need = "a user needs 3 for a training sample beside the one held out, 4 with tuning"
    return (
        f"split.{kind} must hold samples, got none: the longest of {interactions.n_users} histories has "
        f"{max(interactions.lengths(), default=0)} behaviours; {need}"
    )


def require_paths(checkpoint: str | Path | None, output: str | Path | None, checkpoint_bytes: int = 0) -> None:
    """Tries both files of a run, where they are given.

    Raises:
        ValueError: one path for both.
        OSError: a file that cannot be written, or a checkpoint for which too little room is left.
    """
    if checkpoint is not None and output is not None and os.path.realpath(checkpoint) == os.path.realpath(output):
        raise ValueError(f"checkpoint and output must be two files, got {output} for both")
    if checkpoint is not None:
        files.require_writable(checkpoint, "checkpoint", checkpoint_bytes)
    if output is not None:
        files.require_writable(output, "output")


def _epoch(
    model: Model, loader: Batches, optimizers: Optimizers, stopwatch: Stopwatch, title: str, progress: bool
) -> dict[str, Any]:
    """One pass over the training batches; its loss and times."""
    device = next(model.parameters()).device
    model.train()
    losses: list[torch.Tensor] = []
    bar = tqdm(total=len(loader), desc=title, unit="batch", disable=not progress)
    with bar, stopwatch.attached(model):
        stopwatch.reset()
        stopwatch.enter("data")
        for step, batch in enumerate(loader):
            losses.append(train_step(model, optimizers, batch.to(device), stopwatch))
            stopwatch.enter("other")
            if step % 10 == 0:  # reading a loss waits for a GPU, so not every one is read
                bar.set_postfix(loss=f"{_finite(losses[-1], step + 1):.4f}", refresh=False)
            bar.update()
            stopwatch.enter("data")
        stopwatch.enter("other")
    seconds = {phase: round(value, 6) for phase, value in stopwatch.seconds.items()}
    loss = _finite(torch.stack(losses).double().mean(), len(losses))
    return {"loss": loss, "seconds": seconds, "train_seconds": round(sum(seconds.values()), 6)}


def _compared(record: dict[str, Any], base_auc: float) -> dict[str, Any]:
    """The record with `rela_impr`, and a note where that is not defined."""
    notes = dict(record.get("notes", {}))
    value = metrics.or_nan(notes, "rela_impr", metrics.rela_impr, record["user_auc"], base_auc)
    return record | {"rela_impr": value} | ({"notes": notes} if notes else {})


def _finite(loss: torch.Tensor, steps: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise Diverged(f"the loss must be finite, got {value} after {steps} steps")
    return value


def _kept(checkpoint: str | Path | None, saved: int) -> str:
    return f"; {checkpoint} keeps the {saved} complete epochs before" if checkpoint is not None and saved else ""
