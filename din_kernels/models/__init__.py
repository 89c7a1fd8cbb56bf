"""Complete models: DIN and the paper's base model, built from a config."""

from din_kernels.models.base import inputs_of
from din_kernels.models.config import DINConfig, Table
from din_kernels.models.din import DIN
from din_kernels.models.embedding_mlp import EmbeddingMLP

NAMES = {"din": DIN, "embedding-mlp": EmbeddingMLP}

__all__ = ["DIN", "NAMES", "DINConfig", "EmbeddingMLP", "Table", "inputs_of"]
