"""Recipes: a model and the options to train it, in one file of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from din_kernels.models.config import DINConfig
from din_kernels.training.options import TrainingOptions
from din_kernels.training.typed import fields_fit


@dataclass(frozen=True)
class _Table:
    """A table of a recipe: `rows` may be a name of `sizes_of`, such as "items"."""

    rows: int | str
    dim: int


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("din_kernels") / "configs"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def load_recipe(name: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's settings (for `DINConfig.from_dict`) and the training options of a recipe.

    Args:
        name: a recipe of the package, or the path of a JSON file `{"model": {...}, "training": {...}}`.

    Raises:
        OSError: neither a recipe nor a file, or a file that cannot be read.
        ValueError: a file that is not such JSON, an unknown entry, one of another type, or a training option out of
            range; the message begins with the file.
    """
    if str(name) in recipe_names():
        source = resources.files("din_kernels") / "configs" / f"{name}.json"
    else:
        source = Path(name)
        if not source.is_file():
            raise FileNotFoundError(f"config must be a file or one of {', '.join(recipe_names())}, got {name}")
    try:
        content = source.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise OSError(error.errno, f"config cannot be read: {error.strerror}", str(source)) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: config must be UTF-8, got byte {error.object[error.start]:#x}") from None
    try:
        recipe = json.loads(content, object_pairs_hook=_entries, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{source}:{error.lineno}: config must be JSON, got an error at column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: {'too deeply nested' if isinstance(error, RecursionError) else error}") from None
    if not isinstance(recipe, dict) or set(recipe) != {"model", "training"}:
        got = ", ".join(sorted(recipe)) or "none" if isinstance(recipe, dict) else type(recipe).__name__
        raise ValueError(f"{source}: config must have the entries model and training, got {got}")
    try:
        fields_fit("training", recipe["training"], TrainingOptions)
        TrainingOptions(**recipe["training"])
        fields_fit("model", recipe["model"], DINConfig, {"tables": dict[str, _Table]})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from None
    return recipe["model"], recipe["training"]


def _entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that comes twice, json would silently take the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"config must have every key once, got {next(key for key in keys if keys.count(key) > 1)!r}")
    return made


def _refuse(word: str) -> None:
    raise ValueError(f"config must be JSON, got {word}")
