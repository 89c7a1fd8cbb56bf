"""The optimizers of a model: one for its embedding tables, one for the rest."""

from __future__ import annotations

import torch
from torch import nn, optim

from din_kernels import optim as sparse_optim
from din_kernels.models.base import Model
from din_kernels.training.options import TrainingOptions

# Per option: the optimizer of dense parameters, that of sparse tables.
KINDS = {
    "adam": (optim.Adam, optim.SparseAdam),
    "sgd": (optim.SGD, optim.SGD),
    "adagrad": (optim.Adagrad, optim.Adagrad),
    "sparse-adam": (optim.Adam, sparse_optim.SparseAdam),
    "sparse-sgd": (optim.SGD, sparse_optim.SparseSGD),
    "sparse-adagrad": (optim.Adagrad, sparse_optim.SparseAdagrad),
    "sparse-rowwise-adagrad": (optim.Adagrad, sparse_optim.SparseRowWiseAdagrad),
}


class Optimizers:
    """One or two optimizers that step together: sparse tables have one of their own.

    Args:
        model: whose parameters to update.
        options: optimizer, lr, and the regularization of the tables.
        counts: `[V]` per table of the config, n_j of the training samples; needed where options.mba is not 0.

    Raises:
        ValueError: a sparse-* optimizer with dense tables, `l2` with sparse ones, `mba` without counts of a table.
    """

    def __init__(self, model: Model, options: TrainingOptions, counts: dict[str, torch.Tensor] | None = None):
        self._lr, self._decay = options.lr, options.lr_decay
        tables = [each for each in model.modules() if isinstance(each, nn.Embedding)]
        sparse = [each.weight for each in tables if each.sparse]
        if options.sparse and len(sparse) < len(tables):
            raise ValueError(f"optimizer {options.optimizer} needs sparse tables, got a config with sparse=False")
        if options.l2 and sparse:
            raise ValueError("l2 needs dense tables, got a config with sparse=True")
        names = {id(table.weight): name for name, table in model.embeddings.items()}
        regularized = [each.weight for each in tables if not each.sparse and id(each.weight) in names]
        apart = {id(weight) for weight in (*sparse, *regularized)}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in apart]
        dense_kind, sparse_kind = KINDS[options.optimizer]
        groups = [{"params": rest}] + ([{"params": regularized, "weight_decay": options.l2}] if regularized else [])
        self.all = [dense_kind(groups, lr=options.lr)]
        if sparse:
            groups = [{"params": [weight]} | _mba(names.get(id(weight)), options, counts) for weight in sparse]
            self.all.append(sparse_kind(groups, lr=options.lr))

    def start_epoch(self, epoch: int) -> None:
        """Sets the learning rate of `epoch`."""
        for each in self.all:
            for group in each.param_groups:
                group["lr"] = self._lr * self._decay**epoch

    def zero_grad(self) -> None:
        """Drops the gradients of all parameters."""
        for each in self.all:
            each.zero_grad()

    def step(self) -> None:
        """Updates all parameters by their gradients."""
        for each in self.all:
            each.step()

    def state_dict(self) -> list[dict]:
        """What `load_state_dict` takes: the state of each optimizer, in the order of `all`."""
        return [each.state_dict() for each in self.all]

    def load_state_dict(self, state: list[dict]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: a state of more or fewer optimizers, or of other parameters.
        """
        for each, saved in zip(self.all, state, strict=True):
            each.load_state_dict(saved)


def _mba(table: str | None, options: TrainingOptions, counts: dict[str, torch.Tensor] | None) -> dict:
    """The group's regularization; the item bias, which is no table of the config, has none."""
    if table is None or not options.mba:
        return {}
    counts = counts or {}
    if table not in counts:
        raise ValueError(f"counts must hold table {table!r} for mba, got {', '.join(counts) or 'none'}")
    return {"mba": sparse_optim.MBA(options.mba, counts[table])}
