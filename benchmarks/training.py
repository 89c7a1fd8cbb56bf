"""A training epoch of DIN on amazon_beauty: ours beside a plain eager DIN on padded histories.

All sides have the same initial values, loader, optimizer and top MLP; only the unit and what it needs differ. Time:
every batch is a step of each side in turn, so that drift meets all; the first steps are compared, loss by loss, before
any is timed. Accuracy (--epochs): user AUC on the held-out items after every epoch, of ours, sum pooling and the plain
DIN.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from din_kernels import config as environment
from din_kernels import data
from din_kernels.backends.reference.local_activation import padded_unit
from din_kernels.benchmarking import harness
from din_kernels.commands.console import wide_console
from din_kernels.commands.train import load_data
from din_kernels.data import Batch
from din_kernels.jagged import Jagged
from din_kernels.models import DIN, DINConfig
from din_kernels.nn.local_activation import LocalActivationUnit
from din_kernels.training import PHASES, Optimizers, Stopwatch, TrainingOptions, build, load_recipe, sizes_of, train
from din_kernels.training.loop import train_step

OURS, LONGEST, HUNDRED = "DIN, fused", "eager, padded to the longest", "eager, padded to 100"
SUM = "sum pooling"


class PaddedUnit(LocalActivationUnit):
    """The unit as libraries write it, features of every pair."""

    def forward(self, query, history, mask, user) -> torch.Tensor:
        """`query [Q, D]`, `history [U, T, D]`, `mask [U, T]`, `user [Q]` -> `[Q, D]`."""
        weights, biases = [each.weight for each in self.linears], [each.bias for each in self.linears]
        options = {"params": self._activation_params(), "normalize": self.normalize, "scale": self.scale}
        return padded_unit(query, history[user], mask[user], weights, biases, self.features, self.activation, **options)


class PaddedDIN(DIN):
    """DIN as libraries write it: ids padded to `width` (None: the batch's longest history).

    Its values are those of DIN of the same seed. Padding counts as "data" where a `stopwatch` is given.
    """

    def __init__(self, config: DINConfig, width: int | None):
        super().__init__(config)
        self.width = width
        self.stopwatch: Stopwatch | None = None
        for name, unit in self.units.items():
            options = {"normalize": config.normalize, "scale": config.scale}
            sizes = config.width, config.attention_hidden
            padded = PaddedUnit(*sizes, config.attention_activation, config.features, **options)
            padded.load_state_dict(unit.state_dict())
            self.units[name] = padded

    def interests(self, inputs: dict[str, Any], candidate: torch.Tensor, lookups=None) -> list[torch.Tensor]:
        """`[Q, D]` per history."""
        user, found = inputs["query_to_user"], []
        for name, fields in self.config.histories.items():
            ids = inputs["histories"][name]
            if self.stopwatch is not None:
                self.stopwatch.enter("data")
            lengths = ids["offsets"].diff()
            padded = {field: Jagged(ids[field], ids["offsets"]).to_padded(self.width, 0) for field, _ in fields}
            mask = torch.arange(next(iter(padded.values())).shape[1]) < lengths[:, None]
            if self.stopwatch is not None:
                self.stopwatch.enter("embedding")
            rows = torch.cat([self.embeddings[table](padded[field]) for field, table in fields], -1)  # [U, T, D]
            found.append(self.units[name](candidate, rows, mask, user))
        return found


class Side:
    """One model in training, with its own optimizer and stopwatch."""

    def __init__(self, name: str, config: DINConfig, options: TrainingOptions):
        self.model = made(name, config, options.seed)
        self.optimizers = Optimizers(self.model, options)
        self.stopwatch = Stopwatch()
        if isinstance(self.model, PaddedDIN):
            self.model.stopwatch = self.stopwatch

    def step(self, batch: Batch) -> float:
        """One update; time before and after it belongs to nobody."""
        spent = self.stopwatch.seconds["other"]
        self.stopwatch.enter("other")
        self.stopwatch.seconds["other"] = spent
        with self.stopwatch.attached(self.model):
            loss = train_step(self.model, self.optimizers, batch, self.stopwatch)
        self.stopwatch.enter("other")
        return loss.item()


def made(name: str, config: DINConfig, seed: int):
    """The model of a side, initialized as DIN of that seed is."""
    if name in (OURS, SUM):
        return build("din" if name == OURS else "embedding-mlp", config, seed)
    torch.manual_seed(seed)
    return PaddedDIN(config, 100 if name == HUNDRED else None)


def forever(split, interactions, options: TrainingOptions, max_length: int | None) -> Iterator[Batch]:
    """Training batches, one epoch after the other."""
    for epoch in itertools.count():
        order = {"shuffle": True, "seed": options.seed, "epoch": epoch}
        yield from data.batches(split.train, interactions, options.batch_size, max_length=max_length, **order)


def time_steps(split, interactions, config: DINConfig, options: TrainingOptions, steps: int) -> list[dict[str, Any]]:
    """Rows of seconds per epoch, in all and by phase, from `steps` steps of each side in turns."""
    sides = {name: Side(name, config, options) for name in (OURS, LONGEST, HUNDRED)}
    loader = forever(split, interactions, options, config.max_length)
    for step in range(3):
        batch = next(loader)
        losses = {name: side.step(batch) for name, side in sides.items()}
        for name, loss in losses.items():
            if not abs(loss - losses[OURS]) <= 1e-5 * abs(losses[OURS]):
                raise AssertionError(f"{name}: the loss of step {step} must be {losses[OURS]}, got {loss}")
    for side in sides.values():
        side.stopwatch.reset()
    loading = Stopwatch()
    for _ in range(steps):
        loading.enter("data")
        batch = next(loader)
        loading.enter("other")
        for side in sides.values():
            side.step(batch)
    per_epoch = len(data.batches(split.train, interactions, options.batch_size)) / steps
    rows = []
    for name, side in sides.items():
        seconds = {phase: side.stopwatch.seconds[phase] * per_epoch for phase in PHASES}
        seconds["data"] += loading.seconds["data"] * per_epoch
        shown = {phase.replace("_", " "): value for phase, value in seconds.items()}
        rows.append({"model": name, "epoch, s": sum(seconds.values()), "ours is": None} | shown)
    for row in rows:
        row["ours is"] = row["epoch, s"] / rows[0]["epoch, s"]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="path of a data set, or 'generated'; default: amazon_beauty")
    parser.add_argument("--recipe", default="amazon_beauty")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each side; 0: no timing")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of the accuracy table; 0: none")
    parser.add_argument("--plain-epochs", type=int, default=1, help="those of the plain DIN, minutes each")
    parser.add_argument("--seed", type=int, default=0)
    harness.add_save(parser)
    given = parser.parse_args()
    try:
        path = given.data or str(environment.data_set("amazon_beauty"))
    except FileNotFoundError as missing:
        print(f"skipped: {missing}", file=sys.stderr)
        return 0
    settings, training = load_recipe(given.recipe)
    options = TrainingOptions(**(training | {"seed": given.seed, "epochs": given.epochs}))
    interactions, split = load_data(path, options.seed)
    config = DINConfig.from_dict(settings, sizes_of(interactions))
    console = wide_console()
    case = Path(path).name
    if given.steps:
        rows = time_steps(split, interactions, config, options, given.steps)
        console.print(harness.table(f"{case}: seconds per epoch, from {given.steps} steps of each in turns", rows))
        if given.save:
            harness.save(given.save, "training_time", case, rows, recipe=given.recipe)
    if given.epochs:
        rows = []
        for name, epochs in ((OURS, given.epochs), (SUM, given.epochs), (LONGEST, given.plain_epochs)):
            chosen = dataclasses.replace(options, epochs=epochs)
            for each in train(made(name, config, options.seed), split, interactions, chosen):
                rows.append({"model": name} | {key: each[key] for key in ("epoch", "loss", "user_auc", "auc")})
        texts = [row | {key: f"{row[key]:.4f}" for key in ("loss", "user_auc", "auc")} for row in rows]
        console.print(harness.table(f"{case}: held-out metrics, seed {options.seed}", texts))
        if given.save:
            harness.save(given.save, "training_accuracy", case, rows, recipe=given.recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main())
