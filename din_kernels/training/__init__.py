"""Training and evaluation: the loop, checkpoints and metrics."""

from din_kernels.training.evaluation import evaluate, predict
from din_kernels.training.loop import build, sizes_of, table_counts, train, train_step
from din_kernels.training.optimizers import Optimizers
from din_kernels.training.options import TrainingOptions, load_recipe, recipe_names
from din_kernels.training.timing import PHASES, Stopwatch

__all__ = [
    "PHASES",
    "Optimizers",
    "Stopwatch",
    "TrainingOptions",
    "build",
    "evaluate",
    "load_recipe",
    "predict",
    "recipe_names",
    "sizes_of",
    "table_counts",
    "train",
    "train_step",
]
