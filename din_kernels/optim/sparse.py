"""Optimizers that touch only the rows of the batch, with mini-batch aware regularization in the same pass."""

from __future__ import annotations

from typing import Any

import torch

from din_kernels import checks
from din_kernels.ops.sparse_update import RULES, Hyper, Table, sparse_update
from din_kernels.optim.mba import MBA


class SparseOptimizer(torch.optim.Optimizer):
    """What the sparse optimizers share. A subclass names the rule of a group, its states and its numbers.

    A gradient may hold a row any number of times, and a table may be used several times in a step: torch appends one
    use's gradient to the other's. On a CPU it cannot do so in fp16 or bf16: such a table is used once in a step, or
    through `din_kernels.models`, which joins its uses, and its gradient is not accumulated over several backwards.

    With `mba`, coeff * w_j / n_j joins the gradient of each id of the batch; n_j = 0, an id that the counted data never
    held, counts as 1 (see `MBA`).

    States are made when a table is added, and follow it to another device or dtype at the next step.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, params, defaults: dict[str, Any], mba: MBA | None, maximize: bool):
        params = checks.listed("params", params, "tables or groups")
        if not params:
            raise ValueError("params must hold at least one table or group, got none")
        super().__init__(params, defaults | {"mba": mba, "maximize": maximize})

    def rule(self, group: dict[str, Any]) -> str:
        """The name in `sparse_update.RULES`."""
        raise NotImplementedError

    def hyper(self, group: dict[str, Any], step: int) -> dict[str, float]:
        """Fields of `sparse_update.Hyper` at `step`, which counts from 1."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; `mba` regularizes every table of the group, each with as many rows as mba's counts.

        Raises:
            TypeError, ValueError: a number of the group, a table or `mba`, by its name; the group is not added.
        """
        checks.is_mapping("param_group", param_group, "settings")
        _check_params(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.check_numbers(group)
            _check_tables(group)
        except Exception:
            self.param_groups.pop()
            raise
        for parameter in group["params"]:
            self.state[parameter].setdefault("step", 0)
            self._states(group, parameter, self.rule(group))

    def check_numbers(self, group: dict[str, Any]) -> None:
        """TypeError or ValueError that names a number of the group which the rule cannot take."""
        checks.number("lr", group["lr"], at_least=0)
        checks.flag("maximize", group["maximize"])
        for name in ("eps", "lr_decay", "momentum", "initial_accumulator_value"):
            if name in group:
                checks.number(name, group[name], at_least=0)
        if group["mba"] is not None and not isinstance(group["mba"], MBA):
            raise TypeError(f"mba must be a din_kernels.MBA or None, got {type(group['mba']).__name__}")

    @torch.no_grad()
    def step(self, closure=None):
        """Updates the rows that appear in the gradients, each once; a table without gradient is left alone.

        Raises:
            TypeError: a gradient is dense.
            IndexError: a gradient names a row that its table lacks.
            ValueError: mba's counts hold one that is negative or not finite. In all cases nothing has been written.
        """
        loss = None
        if closure is not None:
            if not callable(closure):
                raise TypeError(f"closure must be a function, got {type(closure).__name__}")
            with torch.enable_grad():
                loss = closure()
        with_grad = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for _, parameter in with_grad:
            _check_gradient(parameter)
        steps, tables = {}, {}
        for group, parameter in with_grad:
            steps[parameter] = self.state[parameter].get("step", 0) + 1
            rule = self.rule(group)
            tables.setdefault(rule, []).append(self._table(group, parameter, rule, steps[parameter]))
        if len(tables) > 1:  # one call checks its ids before it writes, several need this
            for table in (table for group_tables in tables.values() for table in group_tables):
                checks.ids_within("ids of a gradient", table.ids, table.weight.shape[0])
        for rule, group_tables in tables.items():
            sparse_update(group_tables, rule, counts_checked=True)
        for parameter, step in steps.items():
            self.state[parameter]["step"] = step
        return loss

    def _table(self, group, parameter, rule: str, step: int) -> Table:
        states, mba = self._states(group, parameter, rule), group["mba"]
        numbers = self.hyper(group, step) | {"lr": float(group["lr"]), "maximize": group["maximize"]}
        counts = padding_idx = None
        if mba is not None:
            mba.counts.check()
            numbers |= {"coeff": mba.coeff, "decoupled": mba.decoupled}
            counts, padding_idx = mba.counts.values, mba.padding_idx
        ids, rows = parameter.grad._indices()[0], parameter.grad._values()
        return Table(parameter, states, ids, rows, Hyper(**numbers), counts, padding_idx)

    def _states(self, group, parameter, rule: str) -> list[torch.Tensor]:
        """The rule's states of a table, fp32 for fp16 and bf16 tables; made where they lack, moved to where it is."""
        state, initial = self.state[parameter], group.get("initial_accumulator_value", 0.0)
        where = {"dtype": torch.promote_types(parameter.dtype, torch.float32), "device": parameter.device}
        for name, shape in zip(self.state_names, RULES[rule], strict=False):
            if name not in state:
                sizes = parameter.shape if shape == "VD" else parameter.shape[:1]
                state[name] = torch.full(sizes, float(initial), **where)
            state[name] = state[name].to(**where)
        return [state[name] for name in self.state_names[: len(RULES[rule])]]

    def state_dict(self) -> dict[str, Any]:
        """As torch's, MBA's settings and counts as plain values among each group's."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            if group["mba"] is not None:
                group["mba"] = group["mba"].state_dict()
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; counts are restored into the MBA objects that the groups hold.

        Raises:
            TypeError, ValueError, IndexError: a saved number, state or `mba` that cannot be taken, by its name; the
                optimizer is as before then.
        """
        self._check_saved(state_dict)
        held = [group["mba"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, mba in zip(self.param_groups, held, strict=True):
            saved = group["mba"]
            if saved is not None and mba is not None:
                mba.load_state_dict(saved)
            elif saved is not None:
                mba = MBA.from_state_dict(saved)
            group["mba"] = mba if saved is not None else None
        self._restore_wide_states(state_dict)

    def _check_saved(self, state_dict: dict[str, Any]) -> None:
        """Raises before anything is written where a saved number, state or `mba` cannot be taken."""
        checks.is_mapping("state_dict", state_dict, "saved entries")
        for name in ("state", "param_groups"):
            if name not in state_dict:
                raise ValueError(f"state_dict must hold {name!r}, got {', '.join(map(repr, state_dict)) or 'none'}")
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):  # torch compares lengths
            mba = saved.get("mba")
            self.check_numbers({**group, **saved, "mba": None})
            if mba is not None and group["mba"] is not None:
                group["mba"].check_state(mba)
            elif mba is not None:
                made = MBA.from_state_dict(mba)
                _check_tables({"params": group["params"], "mba": made})
            for index, parameter in zip(saved["params"], group["params"], strict=False):
                self._check_saved_state(state_dict["state"].get(index, {}), self.rule(saved), parameter)

    def _check_saved_state(self, state: dict[str, Any], rule: str, parameter: torch.Tensor) -> None:
        checks.is_mapping("state", state, "saved states")
        checks.number("step", state.get("step", 0), at_least=0)
        for name, shape in zip(self.state_names, RULES[rule], strict=False):
            if name not in state:
                continue
            checks.is_tensor(name, state[name])
            checks.is_floating(name, state[name])
            checks.has_shape(name, state[name], tuple(parameter.shape if shape == "VD" else parameter.shape[:1]))
            if state[name].device.type == "meta" and parameter.device.type != "meta":
                raise TypeError(f"{name} must have values, got a tensor on the meta device")

    def _restore_wide_states(self, state_dict: dict[str, Any]) -> None:
        """torch casts loaded states to their parameter's dtype; those of fp16 and bf16 tables stay fp32."""
        saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved_ids, parameters, strict=True):
            if parameter.dtype in (torch.float16, torch.bfloat16):
                for name in self.state_names:
                    if name in state_dict["state"].get(index, {}):
                        saved = state_dict["state"][index][name]
                        self.state[parameter][name] = saved.to(parameter.device, torch.float32, copy=True)


def _check_params(group: dict[str, Any]) -> None:
    """TypeError or ValueError unless the group's tables, which may come as (name, table), can be trained here."""
    if "params" not in group:
        raise ValueError(f"params must be an entry of every group, got {', '.join(map(repr, group)) or 'none'}")
    given = group["params"]
    for each in [given] if isinstance(given, torch.Tensor) else checks.listed("params", given, "tables"):
        parameter = each[1] if isinstance(each, tuple) and len(each) == 2 else each
        checks.is_tensor("params", parameter, 2, "[V, D] (embedding tables)")
        checks.is_floating("params", parameter)
        checks.is_writable("params", parameter)
        if not parameter.is_leaf:
            raise ValueError("params must be leaf tensors, got the result of an operation")


def _check_tables(group: dict[str, Any]) -> None:
    mba = group["mba"]
    for parameter in group["params"]:
        if mba is not None and mba.counts.values.shape[0] != parameter.shape[0]:
            raise ValueError(
                f"mba must have counts for the {parameter.shape[0]} rows of its table, got "
                f"{mba.counts.values.shape[0]}; tables of other sizes are groups of their own"
            )


def _check_gradient(parameter: torch.Tensor) -> None:
    grad = parameter.grad
    if not grad.is_sparse:
        kind = "dense one" if grad.layout == torch.strided else f"{grad.layout} one"
        raise TypeError(
            f"the gradient of a table must be sparse, as of nn.Embedding(sparse=True), got a {kind} of shape "
            f"{list(grad.shape)}"
        )
    if grad.sparse_dim() != 1 or grad.dense_dim() != 1:
        raise ValueError(
            f"the gradient of a table must have 1 sparse and 1 dense dimension, got {grad.sparse_dim()} and "
            f"{grad.dense_dim()}"
        )


class SparseSGD(SparseOptimizer):
    """SGD on the rows of the batch; equal to torch.optim.SGD without MBA and momentum.

    With momentum, buffers of the batch's rows alone decay (lazy), as torch's do where every step holds every row.

    Args:
        params: tables `[V, D]`, or groups.
        lr: learning rate.
        momentum, nesterov: as in torch.optim.SGD, on touched rows.
        mba: regularization of the tables, see `MBA`; None for none.
        maximize: ascend; the regularizer still shrinks weights.
    """

    state_names = ("momentum_buffer",)

    def __init__(self, params, lr=1e-3, *, momentum=0.0, nesterov=False, mba: MBA | None = None, maximize=False):
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov}, mba, maximize)

    def check_numbers(self, group):
        super().check_numbers(group)
        checks.flag("nesterov", group["nesterov"])
        if group["nesterov"] and group["momentum"] == 0:
            raise ValueError("nesterov needs a momentum above 0, got 0")

    def rule(self, group):
        if not group["momentum"]:
            return "sgd"
        return "nesterov" if group["nesterov"] else "momentum"

    def hyper(self, group, step):
        return {"step": float(group["lr"]), "beta1": group["momentum"]}


class SparseAdagrad(SparseOptimizer):
    """Adagrad on the rows of the batch; equal to torch.optim.Adagrad without MBA.

    Args:
        params: tables `[V, D]`, or groups.
        lr: learning rate.
        lr_decay, initial_accumulator_value, eps: as in torch.optim.Adagrad.
        mba: regularization of the tables, see `MBA`; None for none.
        maximize: ascend; the regularizer still shrinks weights.
    """

    state_names = ("sum",)

    def __init__(
        self,
        params,
        lr=1e-2,
        *,
        lr_decay=0.0,
        initial_accumulator_value=0.0,
        eps=1e-10,
        mba: MBA | None = None,
        maximize=False,
    ):
        defaults = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "initial_accumulator_value": initial_accumulator_value}
        super().__init__(params, defaults, mba, maximize)

    def rule(self, group):
        return "adagrad"

    def hyper(self, group, step):
        return {"step": float(group["lr"]) / (1 + (step - 1) * group["lr_decay"]), "eps": group["eps"]}


class SparseRowWiseAdagrad(SparseOptimizer):
    """Adagrad with one accumulator per row, `[V]`; equal to FBGEMM's EXACT_ROWWISE_ADAGRAD without MBA.

    Args:
        params: tables `[V, D]`, or groups.
        lr: learning rate.
        eps: added to the root.
        initial_accumulator_value: of every row.
        mba: regularization of the tables, see `MBA`; None for none.
        maximize: ascend; the regularizer still shrinks weights.
    """

    state_names = ("sum",)

    def __init__(
        self, params, lr=1e-2, *, eps=1e-8, initial_accumulator_value=0.0, mba: MBA | None = None, maximize=False
    ):
        defaults = {"lr": lr, "eps": eps, "initial_accumulator_value": initial_accumulator_value}
        super().__init__(params, defaults, mba, maximize)

    def rule(self, group):
        return "rowwise_adagrad"

    def hyper(self, group, step):
        return {"step": float(group["lr"]), "eps": group["eps"]}


class SparseAdam(SparseOptimizer):
    """Lazy Adam: moments of the batch's rows alone decay; equal to torch.optim.SparseAdam without MBA.

    Args:
        params: tables `[V, D]`, or groups.
        lr: learning rate.
        betas, eps: as in torch.optim.SparseAdam.
        mba: regularization of the tables, see `MBA`; None for none.
        maximize: ascend; the regularizer still shrinks weights.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(self, params, lr=1e-3, *, betas=(0.9, 0.999), eps=1e-8, mba: MBA | None = None, maximize=False):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps}, mba, maximize)

    def check_numbers(self, group):
        super().check_numbers(group)
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        for at, beta in enumerate(betas):
            checks.number(f"betas[{at}]", beta, at_least=0, below=1)

    def rule(self, group):
        return "adam"

    def hyper(self, group, step):
        beta1, beta2 = group["betas"]
        corrected = float(group["lr"]) * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        return {"step": corrected, "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
