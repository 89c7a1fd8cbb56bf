"""Trains sum pooling and DIN, then compares the fused unit with what PyTorch offers, in time and memory.

Needs no file: the generated data has planted interests that only attention finds. With --data, the same on real files.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from din_kernels import files
from din_kernels.benchmarking.memory import peak_bytes
from din_kernels.commands.console import wide_console
from din_kernels.commands.train import build_model, default_recipe, load_data, print_history
from din_kernels.data import Batch, Interactions, Samples, Split, batches
from din_kernels.demo.comparison import COMPILED, EAGER, VARIANTS, compare, prepare, unit_inputs
from din_kernels.models import DIN
from din_kernels.training import TrainingOptions, load_recipe, train
from din_kernels.training.loop import require_samples

COMPARED_ROWS = 512  # histories in a compared batch, each with all its candidates
COMPARED_BATCHES = 3
SHOWN_BEHAVIOURS = 40
PLOTS = ("auc.png", "speed.png", "weights.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument("--data", default="generated", help="path of a data set, or 'generated' (default)")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder of the plots")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--users", type=int, default=6000, help="users of generated data")
    parser.add_argument("--without-compile", action="store_true", help="leave torch.compile out of the comparison")
    parser.add_argument("--rounds", type=int, default=5, help="times that each batch is timed per variant")


def run(options: argparse.Namespace) -> int:
    """Trains, compares, prints the tables and writes the plots."""
    try:
        from din_kernels.demo import plots
    except ModuleNotFoundError as missing:
        raise FileNotFoundError(f"the demo draws plots: {missing}; pip install 'din-kernels[demo]'") from None
    console = wide_console()
    recipe = default_recipe(options.data)
    settings, recipe_options = load_recipe(recipe)
    epochs = recipe_options["epochs"] if options.epochs is None else options.epochs
    for name, value in (("epochs", epochs), ("rounds", options.rounds)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    training = TrainingOptions(**(recipe_options | {"seed": options.seed, "epochs": epochs}))
    paths = [options.output / name for name in PLOTS]
    for path in paths:
        files.require_writable(path, "plot")
    interactions, split = load_data(options.data, options.seed, users=options.users)

    histories, base = {}, None
    for name in ("embedding-mlp", "din"):
        model = build_model(name, settings, interactions, options.seed, recipe)
        console.print(f"training {name} on {len(split.train)} samples of {interactions.n_users} users")
        histories[name] = train(model, split, interactions, training, base_auc=base)
        base = histories[name][-1]["user_auc"]
    assert isinstance(model, DIN)
    model.eval()
    print_history(console, histories)
    plots.auc_per_epoch(histories, paths[0])

    inputs = [unit_inputs(model, batch) for batch in _compared(model, split, interactions)]
    width = max(1, max(int(each.history.lengths().max()) for each in inputs))
    shape = (
        f"{len(inputs[0].query)} candidates, {inputs[0].history.num_rows} behaviours, D={model.config.width}, T={width}"
    )
    console.print(f"comparing the unit: {shape}, {torch.get_num_threads()} threads (torch.compile takes a while)")
    names = [name for name in VARIANTS if name != COMPILED or not options.without_compile]
    timings, reasons = compare(inputs, width, options.rounds, names)
    seconds = {name: timing.median / len(inputs) for name, timing in timings.items()}
    megabytes = {}
    for name in seconds:
        peak = peak_bytes(functools.partial(prepare, name, inputs[0], width))
        megabytes[name] = None if peak is None else peak / 1e6
    console.print(_comparison_table(seconds, megabytes))
    for name, reason in reasons.items():
        console.print(f"{name} does not run here: {escape(reason)}", soft_wrap=True)
    plots.speed_bars(seconds, megabytes, f"Local activation unit, {shape}", paths[1])

    _draw_attention(model, split, interactions, plots, paths[2])
    console.print(f"plots: {', '.join(map(str, paths))}")
    return 0


def _compared(model: DIN, split: Split, interactions: Interactions) -> list[Batch]:
    loader = batches(split.train, interactions, COMPARED_ROWS, shuffle=True, max_length=model.config.max_length)
    chosen = [batch for batch in itertools.islice(loader, COMPARED_BATCHES) if len(batch.users) == COMPARED_ROWS]
    return chosen or list(itertools.islice(loader, 1))


def _comparison_table(seconds: dict[str, float], megabytes: dict[str, float | None]) -> Table:
    title = "one forward and backward, medians, interleaved; equal results asserted first"
    columns = "activation unit", "ms", "speed, eager = 1", "peak MB above inputs"
    table = Table(*columns, title=title, box=box.SIMPLE_HEAD)
    for name in seconds:
        speed = f"{seconds[EAGER] / seconds[name]:.1f}x"
        memory = "not measured" if megabytes[name] is None else f"{megabytes[name]:.0f}"
        table.add_row(name, f"{seconds[name] * 1e3:.2f}", speed, memory)
    return table


def _draw_attention(model: DIN, split: Split, interactions: Interactions, plots, path: Path) -> None:
    """One held-out user with a long history, and a candidate from each of its most frequent categories."""
    samples = require_samples(split, interactions)
    row = int(np.argmax(np.minimum(samples.history_length, SHOWN_BEHAVIOURS)))
    begin = samples.history_begin[row] + max(0, samples.history_length[row] - SHOWN_BEHAVIOURS)
    history = interactions.item_ids[begin : samples.history_begin[row] + samples.history_length[row]]
    category = np.array([_first_category(interactions, item) for item in history])
    names, counts = np.unique(category, return_counts=True)
    shown = names[np.argsort(-counts, kind="stable")[:4]]
    items = [history[np.flatnonzero(category == each)[-1]] for each in shown]
    labels = np.zeros((1, len(items)), np.float32)
    window = Samples(samples.user[[row]], np.array([begin]), np.array([len(history)]), np.array([items]), labels)
    weights = model.predict_weights(next(iter(batches(window, interactions, 1, max_length=None)))).to_padded()
    candidates = [f"item {item} ({_name(interactions, each)})" for item, each in zip(items, shown, strict=True)]
    behaviours = [_name(interactions, each) for each in category]
    plots.attention(weights.numpy(), candidates, behaviours, shown[:, None] == category, path)


def _first_category(interactions: Interactions, item: int) -> int:
    values, _ = interactions.categories_of(np.array([item]))
    return int(values[0]) if len(values) else -1


def _name(interactions: Interactions, category: int) -> str:
    if interactions.category_names is None or category < 0:
        return f"category {category}"
    return str(interactions.category_names[category])
