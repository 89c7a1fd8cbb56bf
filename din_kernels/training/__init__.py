"""Training and evaluation: the loop, checkpoints and metrics."""

from din_kernels.training.errors import CheckpointError, Diverged, Interrupted
from din_kernels.training.evaluation import evaluate, predict
from din_kernels.training.loop import build, train, train_step
from din_kernels.training.optimizers import Optimizers
from din_kernels.training.options import TrainingOptions
from din_kernels.training.recipes import load_recipe, recipe_names
from din_kernels.training.tables import sizes_of, table_counts
from din_kernels.training.timing import PHASES, Stopwatch

__all__ = [
    "PHASES",
    "CheckpointError",
    "Diverged",
    "Interrupted",
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
