"""Data sets, the papers' splits, and packed batches."""

from din_kernels.data.batches import Batch, Batches, batches
from din_kernels.data.counts import category_counts, item_counts, seen_in_training
from din_kernels.data.detect import load
from din_kernels.data.generator import Generated, generate
from din_kernels.data.interactions import Interactions, Samples, Split
from din_kernels.data.movielens import load_movielens
from din_kernels.data.prepared import load_amazon_prepared, load_released_rows
from din_kernels.data.reviews import load_amazon_reviews
from din_kernels.data.split import split, split_amazon, split_movielens

__all__ = [
    "Batch",
    "Batches",
    "Generated",
    "Interactions",
    "Samples",
    "Split",
    "batches",
    "category_counts",
    "generate",
    "item_counts",
    "load",
    "load_amazon_prepared",
    "load_amazon_reviews",
    "load_movielens",
    "load_released_rows",
    "seen_in_training",
    "split",
    "split_amazon",
    "split_movielens",
]
