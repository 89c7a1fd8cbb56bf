"""Trains DIN or the base model and evaluates it after every epoch.

Data: "generated" (planted interests, no file needed), or the path of Amazon reviews (raw json.gz with meta, or prepared
text) or MovieLens (ratings and movies). A recipe sets model and training; options given here override it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from pathlib import Path

import torch
from rich import box
from rich.table import Table

from din_kernels import backends, data
from din_kernels.commands.console import wide_console
from din_kernels.data import Interactions, Split
from din_kernels.models import NAMES, DINConfig
from din_kernels.training import PHASES, TrainingOptions, build, load_recipe, recipe_names, sizes_of, train
from din_kernels.training.options import OPTIMIZERS


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
    """Trains and prints the metrics of every epoch."""
    if options.recipe is not None and options.config is not None:
        raise ValueError("recipe and config exclude each other, got both")
    recipe = options.config or options.recipe or default_recipe(options.data)
    settings, training = load_recipe(recipe)
    given = {each.name: getattr(options, each.name, None) for each in dataclasses.fields(TrainingOptions)}
    training = TrainingOptions(**(training | {name: value for name, value in given.items() if value is not None}))
    interactions, split = load_data(options.data, training.seed, options.tuning)
    settings |= {"sparse": True} if training.sparse else {}
    config = DINConfig.from_dict(settings, sizes_of(interactions))
    model = build(options.model, config, training.seed).to(torch.device(options.device))
    console = wide_console()
    console.print(
        f"{options.model}, recipe {recipe}: {interactions.n_users} users, {interactions.n_items} items, "
        f"{len(split.train)} training samples"
    )
    forced = contextlib.nullcontext()
    if options.backend is not None:
        forced = backends.use_backend(options.backend, ops=("local_activation",))
    with forced:
        history = train(
            model, split, interactions, training, checkpoint=options.checkpoint, resume=options.resume,
            output=options.output, base_auc=options.base_auc,
        )  # fmt: skip
    console.print(metrics_table({options.model: history}))
    console.print(phases_table({options.model: history}))
    return 0


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


def metrics_table(histories: dict[str, list[dict]]) -> Table:
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
    table = Table("model", "epoch", "loss", *columns.values(), title=title, box=box.SIMPLE_HEAD)
    for name, history in histories.items():
        for record in history:
            values = [f"{record[key]:.4f}" if key in record else "" for key in columns]
            table.add_row(
                name, str(record["epoch"]), f"{record['loss']:.4f}", *values, f"{record['train_seconds']:.1f}"
            )
    return table


def phases_table(histories: dict[str, list[dict]]) -> Table:
    """Where the training time went, summed over epochs."""
    phases = [phase.replace("_", " ") for phase in PHASES]
    table = Table("model", *phases, title="training time by phase, seconds", box=box.SIMPLE_HEAD)
    for name, history in histories.items():
        table.add_row(name, *(f"{sum(record['seconds'][phase] for record in history):.2f}" for phase in PHASES))
    return table
