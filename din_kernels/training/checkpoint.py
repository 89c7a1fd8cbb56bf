"""Checkpoints at epoch boundaries, from which training continues bit for bit."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from din_kernels.models.base import Model
from din_kernels.training.optimizers import Optimizers
from din_kernels.training.options import TrainingOptions

VERSION = 1


def save(
    path: str | Path,
    model: Model,
    optimizers: Optimizers,
    options: TrainingOptions,
    history: list[dict[str, Any]],
) -> None:
    """Writes all that training needs to go on, and the history so far; a broken write leaves the old file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    content = {
        "version": VERSION,
        "model_name": type(model).__name__,
        "config": model.config.to_dict(),
        "options": dataclasses.asdict(options),
        "model": model.state_dict(),
        "optimizers": optimizers.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "history": history,
    }
    torch.save(content, partial)
    os.replace(partial, path)


def resume(path: str | Path, model: Model, optimizers: Optimizers, options: TrainingOptions) -> list[dict[str, Any]]:
    """Restores what `save` wrote and returns the history; the next epoch is `len(history)`.

    Raises:
        ValueError: another version, model or config, or other options than the number of epochs.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    expected = {
        "version": VERSION,
        "model_name": type(model).__name__,
        "config": model.config.to_dict(),
    }
    for name, value in expected.items():
        if content.get(name) != value:
            raise ValueError(f"{path}: {name} must be {value}, got {content.get(name)}")
    for name, value in dataclasses.asdict(options).items():
        if name != "epochs" and content["options"].get(name) != value:
            raise ValueError(f"{path}: option {name} must be {value}, got {content['options'].get(name)}")
    model.load_state_dict(content["model"])
    optimizers.load_state_dict(content["optimizers"])
    torch.set_rng_state(content["rng"])
    if torch.cuda.is_available() and content["cuda_rng"]:
        torch.cuda.set_rng_state_all(content["cuda_rng"])
    return content["history"]
