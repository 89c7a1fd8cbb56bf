"""How to train: the options, and the recipes in which they come with a model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from din_kernels import checks

OPTIMIZERS = ("adam", "sgd", "adagrad", "sparse-adam", "sparse-sgd", "sparse-adagrad", "sparse-rowwise-adagrad")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `training.train`.

    Args:
        epochs: passes over the training samples.
        batch_size: histories in a batch; on Amazon each brings a positive and its negative.
        optimizer: "adam" (with sparse tables: torch.optim.SparseAdam on them), "sgd" or "adagrad", torch's; or
            "sparse-adam", "sparse-sgd", "sparse-adagrad", "sparse-rowwise-adagrad": `din_kernels.optim` on sparse
            tables, torch's Adam, SGD or Adagrad on the rest.
        mba: coefficient of the mini-batch aware regularization of the tables (paper, section 5.1), with counts n_j of
            the training samples; needs a sparse-* optimizer.
        l2: coefficient of an L2 penalty on every row of every table in every step, as CTR libraries have it; needs
            dense tables.
        lr: learning rate.
        lr_decay: epoch e (from 0) trains with `lr * lr_decay ** e`.
        seed: of the model's initialization, the order of batches and torch's generator.
        eval_batch_size: histories in a batch of evaluation.

    Raises:
        ValueError: an unknown optimizer, or a number out of range.
    """

    epochs: int = 1
    batch_size: int = 512
    optimizer: str = "adam"
    lr: float = 1e-3
    lr_decay: float = 1.0
    seed: int = 0
    eval_batch_size: int = 2048
    mba: float = 0.0
    l2: float = 0.0

    def __post_init__(self):
        checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        for name, least in (("epochs", 0), ("batch_size", 1), ("eval_batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("lr", "lr_decay"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("mba", "l2"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.mba and not self.sparse:
            known = ", ".join(name for name in OPTIMIZERS if name.startswith("sparse-"))
            raise ValueError(f"mba needs one of the optimizers {known}, got {self.optimizer}")
        if self.l2 and self.sparse:
            raise ValueError(f"l2 reaches every row and needs dense tables, got optimizer {self.optimizer}")

    @property
    def sparse(self) -> bool:
        """Whether the optimizer is one of `din_kernels.optim`, which needs sparse tables."""
        return self.optimizer.startswith("sparse-")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("din_kernels") / "configs"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def load_recipe(name: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's settings (for `DINConfig.from_dict`) and the training options of a recipe.

    Args:
        name: a recipe of the package, or the path of a JSON file `{"model": {...}, "training": {...}}`.

    Raises:
        FileNotFoundError: neither a recipe nor a file.
        ValueError: a file that is not such JSON, or an unknown training option.
    """
    if str(name) in recipe_names():
        source = resources.files("din_kernels") / "configs" / f"{name}.json"
    else:
        source = Path(name)
        if not source.is_file():
            raise FileNotFoundError(f"config must be a file or one of {', '.join(recipe_names())}, got {name}")
    try:
        content = json.loads(source.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{source}:{error.lineno}: config must be JSON, got an error at column {error.colno}"
        ) from None
    if not isinstance(content, dict) or set(content) != {"model", "training"}:
        got = ", ".join(sorted(content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{source}: config must have the entries model and training, got {got}")
    known = {each.name for each in dataclasses.fields(TrainingOptions)}
    unknown = sorted(set(content["training"]) - known)
    if unknown:
        raise ValueError(f"{source}: training must hold {', '.join(sorted(known))}, got {', '.join(unknown)}")
    return content["model"], content["training"]
