"""The demo's plots, drawn into files without a display."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from din_kernels import files

matplotlib.use("Agg")


def _save(figure: Figure, path: Path) -> None:
    with files.replacing(path, "plot") as out:
        figure.savefig(out, format="png", dpi=150)


def auc_per_epoch(histories: dict[str, list[dict]], path: Path) -> None:
    """User AUC of every model after every epoch."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, history in histories.items():
        axes.plot([record["epoch"] for record in history], [record["user_auc"] for record in history], "o-", label=name)
    axes.set(xlabel="epoch", ylabel="user AUC, held-out", title="Attention against sum pooling")
    axes.set_xticks(sorted({record["epoch"] for history in histories.values() for record in history}))
    axes.legend()
    _save(figure, path)


def speed_bars(seconds: dict[str, float], megabytes: dict[str, float | None], title: str, path: Path) -> None:
    """Time and peak memory of one forward and backward, per variant."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    figure.suptitle(title)
    names = list(seconds)
    left, right = figure.subplots(1, 2, sharey=True)
    bars = left.barh(names, [seconds[name] * 1e3 for name in names])
    left.bar_label(bars, fmt="%.1f", padding=3)
    left.set(xlabel="milliseconds, forward and backward")
    bars = right.barh(names, [megabytes.get(name) or 0 for name in names], color="tab:orange")
    right.bar_label(bars, fmt="%.0f", padding=3)
    right.set(xlabel="peak memory above the inputs, MB")
    for axes in (left, right):
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    left.invert_yaxis()
    _save(figure, path)


def attention(weights: np.ndarray, candidates: list[str], behaviours: list[str], same: np.ndarray, path: Path) -> None:
    """Weights `[C, T]` of one user's behaviours for several candidates; `same [C, T]` marks a shared category."""
    figure = Figure(figsize=(max(6.0, 0.28 * len(behaviours)), 1.8 + 0.4 * len(candidates)), layout="constrained")
    axes = figure.add_subplot()
    low, high = float(weights.min()), float(weights.max())
    if low < 0:  # weights of both signs: white is 0
        limit = max(-low, high)
        image = axes.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    else:
        image = axes.imshow(weights, cmap="YlOrRd", vmin=low, vmax=high, aspect="auto")
    row, column = np.nonzero(same)
    axes.plot(column, row, "k.", markersize=4)
    axes.set_xticks(range(len(behaviours)), behaviours, rotation=90, fontsize=7)
    axes.set_yticks(range(len(candidates)), candidates, fontsize=8)
    axes.set(
        xlabel="the user's behaviours, oldest first, by category", title="Weights per candidate (dot: same category)"
    )
    figure.colorbar(image, ax=axes, label="weight")
    _save(figure, path)
