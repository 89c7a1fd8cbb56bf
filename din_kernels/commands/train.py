"""Trains DIN or the base model and evaluates it after every epoch.

Data: "generated" (planted interests, no file needed), or the path of Amazon reviews (raw json.gz with meta, or prepared
text) or MovieLens (ratings and movies). A recipe sets model and training; options given here override it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from din_kernels import backends, data
from din_kernels.commands.console import wide_console
from din_kernels.data import Interactions, Split
from din_kernels.models import NAMES, DINConfig
from din_kernels.models.base import Model
from din_kernels.training import (
    PHASES,
    Interrupted,
    TrainingOptions,
    build,
    load_recipe,
    recipe_names,
    sizes_of,
    train,
)
from din_kernels.training.loop import require_paths, require_samples
from din_kernels.training.options import OPTIMIZERS
from din_kernels.training.tables import require_fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument("--data", default="generated", help="path of a data set, or 'generated' (default)")
    parser.add_argument("--model", choices=sorted(NAMES), default="din")
    names = ", ".join(recipe_names())
    parser.add_argument("--recipe", help=f"one of {names}; default: generated for generated data, else amazon_beauty")
    parser.add_argument("--config", type=Path, help="a recipe of your own: JSON file with entries model and training")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, help="histories in a batch")
    parser.add_argument("--lr", type=float, help="learning rate")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="sparse-* touch only the rows of a batch")
    parser.add_argument("--mba", type=float, help="coefficient of mini-batch aware regularization, with sparse-*")
    parser.add_argument("--l2", type=float, help="coefficient of an L2 penalty on whole tables, without sparse-*")
    parser.add_argument("--seed", type=int, help="of initialization, order of batches, split and generated data")
    parser.add_argument("--backend", choices=backends.NAMES, help="force the backend of the activation unit")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--tuning", action="store_true", help="hold out validation samples instead of the test")
    parser.add_argument("--base-auc", type=float, help="user AUC of a base model, to print RelaImpr")
    parser.add_argument("--checkpoint", type=Path, help="file written after every epoch")
    parser.add_argument("--resume", action="store_true", help="continue from --checkpoint where it exists")
    parser.add_argument("--output", type=Path, help="JSON file for metrics and times of every epoch")


def run(options: argparse.Namespace) -> int:
    """Trains and prints the metrics of every epoch; options are tried before the data are read."""
    if options.recipe is not None and options.config is not None:
        raise ValueError("recipe and config exclude each other, got both")
    recipe = options.config or options.recipe or default_recipe(options.data)
    settings, recipe_options = load_recipe(recipe)
    training = _overridden(recipe_options, options)
    device = device_of(options.device)
    if options.backend is not None and backends.unavailable(options.backend) is not None:
        raise ValueError(f"backend {options.backend} cannot serve here: {backends.unavailable(options.backend)}")
    if options.base_auc is not None and not 0 <= options.base_auc <= 1:
        raise ValueError(f"base-auc must lie in 0..1, got {options.base_auc}")
    if options.resume and options.checkpoint is None:
        raise ValueError("checkpoint must be given to resume, got None")
    _require_apart(options)
    require_paths(options.checkpoint, options.output)

    interactions, split = load_data(options.data, training.seed, options.tuning)
    require_samples(split, interactions)
    settings = settings | ({"sparse": True} if training.sparse else {})
    model = build_model(options.model, settings, interactions, training.seed, str(recipe)).to(device)
    console = wide_console()
    console.print(
        f"{options.model}, recipe {recipe}: {interactions.n_users} users, {interactions.n_items} items, "
        f"{len(split.train)} training samples"
    )
    forced: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if options.backend is not None:
        forced = backends.use_backend(options.backend, ops=("local_activation",))
    kept = {"checkpoint": options.checkpoint, "resume": options.resume, "output": options.output}
    try:
        with forced:
            history = train(model, split, interactions, training, base_auc=options.base_auc, **kept)
    except Interrupted as stop:
        hint = "; the same command with --resume goes on from there" if stop.kept else ""
        raise KeyboardInterrupt(f"{stop}{hint}") from None
    print_history(console, {options.model: history})
    return 0


def _overridden(training: dict[str, Any], options: argparse.Namespace) -> TrainingOptions:
    """The recipe's training options with those of the command line in their place."""
    given = {each.name: getattr(options, each.name, None) for each in dataclasses.fields(TrainingOptions)}
    return TrainingOptions(**(training | {name: value for name, value in given.items() if value is not None}))


def _require_apart(options: argparse.Namespace) -> None:
    """What is read must not be written over."""
    read = [path for path in (options.config, options.data) if path is not None]
    for name in ("checkpoint", "output"):
        written = getattr(options, name)
        if written is not None and os.path.realpath(written) in map(os.path.realpath, read):
            raise ValueError(f"{name} must not be a file that is read, got {written}")


def device_of(name: str) -> torch.device:
    """The torch device of that name, tried with a tensor.

    Raises:
        ValueError: no such device here, or one that holds no values.
    """
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except Exception as error:  # an unknown name, a missing driver and a missing build raise errors of their own types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"device must be a torch device of this machine, got {name!r}: {reason}") from None
    return device


def build_model(name: str, settings: dict[str, Any], interactions: Interactions, seed: int, recipe: str) -> Model:
    """The model of a recipe for these data.

    Raises:
        ValueError: settings that do not suit each other, the data, or the memory; the message begins with the recipe.
    """
    try:
        config = DINConfig.from_dict(settings, sizes_of(interactions))
        require_fit(config, interactions)
        return build(name, config, seed)
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{recipe}: {reason}") from error


def default_recipe(path: str) -> str:
    """The recipe for a data set."""
    return "generated" if path == "generated" else "amazon_beauty"


def load_data(path: str, seed: int, tuning: bool = False, **size: int) -> tuple[Interactions, Split]:
    """Interactions and their split, from files or from the generator, which takes `size`."""
    if path != "generated":
        interactions = data.load(path)
        return interactions, data.split(interactions, seed=seed, tuning=tuning)
    if tuning:
        raise ValueError("tuning needs data from files, got generated data")
    generated = data.generate(seed=seed, **size)
    return generated.interactions, generated.split


def print_history(console: Console, histories: dict[str, list[dict[str, Any]]]) -> None:
    """The tables of metrics and phases, and why a metric is nan."""
    console.print(metrics_table(histories), phases_table(histories))
    for line in undefined_metrics(histories):
        console.print(escape(line), soft_wrap=True)


def undefined_metrics(histories: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A line per model and reason for which metrics are nan."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for name, history in histories.items():
        for record in history:
            for metric, reason in record.get("notes", {}).items():
                found.setdefault((name, reason), {})[metric] = None
    return [f"{name}: {', '.join(each)} not defined, {reason}" for (name, reason), each in found.items()]


def metrics_table(histories: dict[str, list[dict[str, Any]]]) -> Table:
    """Metrics per model and epoch."""
    columns = {
        "auc": "AUC",
        "auc_seen": "seen",
        "user_auc": "user",
        "user_auc_positives": "by pos",
        "user_auc_none": "unw",
        "logloss": "logloss",
        "rela_impr": "RelaImpr",
    }
    records = [record for history in histories.values() for record in history]
    columns = {key: title for key, title in columns.items() if any(key in record for record in records)}
    title = "held-out metrics (user AUC by impressions, by positives, unweighted)"
    table = Table("model", "epoch", "loss", *columns.values(), "seconds", title=title, box=box.SIMPLE_HEAD)
    for name, history in histories.items():
        for record in history:
            values = [f"{record[key]:.4f}" if key in record else "" for key in columns]
            table.add_row(
                name, str(record["epoch"]), f"{record['loss']:.4f}", *values, f"{record['train_seconds']:.1f}"
            )
    return table


def phases_table(histories: dict[str, list[dict[str, Any]]]) -> Table:
    """Where the training time went, summed over epochs."""
    phases = [phase.replace("_", " ") for phase in PHASES]
    table = Table("model", *phases, title="training time by phase, seconds", box=box.SIMPLE_HEAD)
    for name, history in histories.items():
        table.add_row(name, *(f"{sum(record['seconds'][phase] for record in history):.2f}" for phase in PHASES))
    return table
