"""torch's optimizers for a model whose tables may have sparse gradients."""

from __future__ import annotations

from torch import nn, optim

from din_kernels.training.options import TrainingOptions


class Optimizers:
    """One or two torch optimizers that step together: Adam on sparse tables is another class than on the rest.

    Args:
        model: whose parameters to update.
        options: optimizer and lr.
    """

    def __init__(self, model: nn.Module, options: TrainingOptions):
        self._lr, self._decay = options.lr, options.lr_decay
        tables = [each.weight for each in model.modules() if isinstance(each, nn.Embedding) and each.sparse]
        identity = {id(weight) for weight in tables}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in identity]
        kinds = {"adam": (optim.Adam, optim.SparseAdam), "sgd": (optim.SGD,) * 2, "adagrad": (optim.Adagrad,) * 2}
        dense, sparse = kinds[options.optimizer]
        self.all = [dense(rest, lr=options.lr)] + ([sparse(tables, lr=options.lr)] if tables else [])

    def start_epoch(self, epoch: int) -> None:
        """Sets the learning rate of `epoch`."""
        for each in self.all:
            for group in each.param_groups:
                group["lr"] = self._lr * self._decay**epoch

    def zero_grad(self) -> None:
        for each in self.all:
            each.zero_grad()

    def step(self) -> None:
        for each in self.all:
            each.step()

    def state_dict(self) -> list[dict]:
        return [each.state_dict() for each in self.all]

    def load_state_dict(self, state: list[dict]) -> None:
        for each, saved in zip(self.all, state, strict=True):
            each.load_state_dict(saved)
