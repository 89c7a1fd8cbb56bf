"""What regularization does for DIN on real data: none, L2 on whole tables, mini-batch aware; with PReLU and with Dice.

Learning rate (without regularization), then coefficient, then epoch are chosen by the user AUC on validation samples
(b_{n-1} of each user), with one seed; rate and coefficient with PReLU, and Dice takes the same. Then each choice trains
anew on all but the last behaviour with several seeds, and the test is read. Adagrad everywhere: without regularization
its sparse and its dense form take the same steps, so that nothing else differs.

    python benchmarks/regularization.py run amazon_beauty --data .../amazon_beauty
    python benchmarks/regularization.py report

Every run is a line of benchmarks/results/regularization/<name>.jsonl; an interrupted command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from din_kernels import data, files
from din_kernels.models import DINConfig
from din_kernels.training import TrainingOptions, build, load_recipe, sizes_of, train

RESULTS = Path(__file__).resolve().parent / "results" / "regularization"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "results"
RATES = (0.003, 0.005, 0.01, 0.02)
COEFFS = {"none": (0.0,), "l2": (1e-5, 1e-4, 1e-3, 1e-2), "mba": (0.1, 0.3, 1.0, 3.0, 10.0)}
NAMES = {"none": "no regularization", "l2": "L2 on whole tables", "mba": "mini-batch aware"}
ACTIVATIONS = ("prelu", "dice")
METRICS = ("user_auc", "auc", "logloss", "loss")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run."""

    phase: str  # "tuning" or "final"
    activation: str
    regularizer: str
    coeff: float
    lr: float
    seed: int


def options_of(run: Run, epochs: int) -> TrainingOptions:
    """The training options of a run."""
    coefficient = {} if run.regularizer == "none" else {run.regularizer: run.coeff}
    optimizer = "adagrad" if run.regularizer == "l2" else "sparse-adagrad"
    return TrainingOptions(epochs=epochs, optimizer=optimizer, lr=run.lr, seed=run.seed, **coefficient)


def execute(run: Run, interactions: data.Interactions, epochs: int) -> dict[str, list[float]]:
    """Metrics of a run per epoch, on validation samples when tuning, else on the test."""
    options = options_of(run, epochs)
    settings = load_recipe("amazon_beauty")[0] | {"activation": run.activation, "sparse": options.sparse}
    model = build("din", DINConfig.from_dict(settings, sizes_of(interactions)), run.seed)
    split = data.split(interactions, seed=0, tuning=run.phase == "tuning")
    history = train(model, split, interactions, options, progress=False)
    return {metric: [record[metric] for record in history] for metric in METRICS}


def load_runs(path: Path) -> dict[Run, dict[str, list[float]]]:
    """Runs that a file holds."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {
        Run(**line["run"]): {
            metric: [math.nan if value is None else value for value in values]  # a metric that was not defined
            for metric, values in line["metrics"].items()
        }
        for line in lines
    }


def chosen(runs: dict[Run, dict[str, list[float]]], activation: str, regularizer: str) -> tuple[Run, int, float]:
    """The tuning run and the epoch, from 1, with the highest user AUC on validation samples, and that AUC."""
    tried = {
        run: np.nan_to_num(metrics["user_auc"], nan=-math.inf).tolist()
        for run, metrics in runs.items()
        if (run.phase, run.activation, run.regularizer) == ("tuning", activation, regularizer)
    }
    best = max(tried, key=lambda run: max(tried[run]))
    return best, int(np.argmax(tried[best])) + 1, max(tried[best])


def run_all(name: str, path: Path, epochs: int, seeds: int) -> None:
    """Tunes, chooses and trains anew, skipping the runs that are done."""
    interactions = data.load(path)
    file = RESULTS / f"{name}.jsonl"
    runs = load_runs(file)

    def ensure(run: Run) -> None:
        if run in runs:
            return
        runs[run] = execute(run, interactions, epochs)
        line = {"run": dataclasses.asdict(run), "metrics": runs[run]}
        files.append_line(file, files.json_text(line))
        print(run, [round(value, 4) for value in runs[run]["user_auc"]], flush=True)

    for lr in RATES:
        ensure(Run("tuning", "prelu", "none", 0.0, lr, 0))
    rate = chosen(runs, "prelu", "none")[0].lr
    for regularizer in ("mba", "l2"):
        for coeff in COEFFS[regularizer]:
            ensure(Run("tuning", "prelu", regularizer, coeff, rate, 0))
    for regularizer in COEFFS:
        best, _, _ = chosen(runs, "prelu", regularizer)
        ensure(dataclasses.replace(best, activation="dice"))
    for seed in range(seeds):
        for activation in ACTIVATIONS:
            for regularizer in COEFFS:
                best, _, _ = chosen(runs, activation, regularizer)
                ensure(dataclasses.replace(best, phase="final", seed=seed))


def rows_of(runs: dict[Run, dict[str, list[float]]]) -> list[dict]:
    """One row per activation and regularizer: what was chosen, and the test metrics of all seeds at that epoch."""
    rows, tuned = [], {(run.activation, run.regularizer) for run in runs if run.phase == "tuning"}
    for activation in ACTIVATIONS:
        for regularizer in COEFFS:
            if (activation, regularizer) not in tuned:
                continue
            best, epoch, validation = chosen(runs, activation, regularizer)
            final = [
                metrics
                for run, metrics in runs.items()
                if dataclasses.replace(run, phase="tuning", seed=0) == best and run.phase == "final"
            ]
            if final:
                row = {"best": best, "epoch": epoch, "validation": validation, "seeds": len(final)}
                rows.append(row | {metric: np.array([metrics[metric] for metrics in final]) for metric in METRICS})
    return rows


def over_seeds(values: np.ndarray) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():.4f} ± {values.std(ddof=1) if len(values) > 1 else 0:.4f}"


def name_of(best: Run) -> str:
    return f"{'PReLU' if best.activation == 'prelu' else 'Dice'}, {NAMES[best.regularizer]}"


def table(rows: list[dict]) -> str:
    """Markdown: the test at the chosen epoch."""
    lines = [
        "| model | coefficient | lr | epoch | validation user AUC | seeds | test user AUC | test AUC |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        best, at = row["best"], row["epoch"] - 1
        lines.append(
            f"| {name_of(best)} | {f'{best.coeff:g}' if best.coeff else '-'} | {best.lr:g} | {row['epoch']} "
            f"| {row['validation']:.4f} | {row['seeds']} | {over_seeds(row['user_auc'][:, at])} "
            f"| {over_seeds(row['auc'][:, at])} |"
        )
    return "\n".join(lines) + "\n"


def table_per_epoch(rows: list[dict], metric: str) -> str:
    """Markdown: a test metric after every epoch."""
    epochs = rows[0][metric].shape[1]
    lines = [
        "| model | " + " | ".join(f"epoch {at + 1}" for at in range(epochs)) + " |",
        "|---" + "|---:" * epochs + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join([name_of(row["best"]), *map(over_seeds, row[metric].T)]) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], path: Path, title: str) -> None:
    """Test user AUC and AUC per epoch: mean, and a band of one standard deviation over seeds."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for row in rows:
        best = row["best"]
        epochs = np.arange(1, row["auc"].shape[1] + 1)
        for axis, metric in zip(axes, ("user_auc", "auc"), strict=True):
            mean, deviation = row[metric].mean(0), row[metric].std(0)
            (line,) = axis.plot(
                epochs,
                mean,
                "-o" if best.activation == "dice" else "--s",
                ms=4,
                color={"none": "C3", "l2": "C1", "mba": "C0"}[best.regularizer],
                label=name_of(best),
            )
            axis.fill_between(epochs, mean - deviation, mean + deviation, alpha=0.15, color=line.get_color(), lw=0)
            axis.plot(row["epoch"], mean[row["epoch"] - 1], "*", ms=13, color=line.get_color())
    for axis, label in zip(axes, ("test user AUC", "test AUC"), strict=True):
        axis.set_xlabel("epoch (star: chosen on validation samples)")
        axis.set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
    figure.suptitle(f"{title}: mean and standard deviation over {min(row['seeds'] for row in rows)} seeds or more")
    with files.replacing(path) as out:
        figure.savefig(out, format="png", dpi=110)


def report() -> None:
    """Writes docs/results/regularization.md and a plot per data set."""
    parts = [
        "# Regularization and activation on real data\n",
        __doc__.strip().split("\n\n")[1] + "\n",
        "Written by `python benchmarks/regularization.py report`; mean ± standard deviation.\n",
    ]
    for file in sorted(RESULTS.glob("*.jsonl")):
        rows = rows_of(load_runs(file))
        if not rows:
            continue
        picture = f"regularization_{file.stem}.png"
        plot(rows, DOCS / picture, file.stem)
        parts += [
            f"## {file.stem}\n",
            table(rows),
            f"![Test metrics per epoch]({picture})\n",
            "Test user AUC after every epoch:\n",
            table_per_epoch(rows, "user_auc"),
            "Test AUC after every epoch:\n",
            table_per_epoch(rows, "auc"),
        ]
    files.write_text(DOCS / "regularization.md", "\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("name")
    runner.add_argument("--data", type=Path, required=True)
    runner.add_argument("--epochs", type=int, default=6)
    runner.add_argument("--seeds", type=int, default=5)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "run":
        run_all(options.name, options.data, options.epochs, options.seeds)
    else:
        report()


if __name__ == "__main__":
    main()
