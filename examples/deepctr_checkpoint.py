"""Goes on from a checkpoint of DeepCTR-Torch's DIN: its attention becomes a LocalActivationUnit.

    python examples/deepctr_checkpoint.py [CHECKPOINT]

That library is not needed: a checkpoint is its model's state dict, and these are the names in it. Without CHECKPOINT
a state dict of this layout is made up. Its unit takes q, k, q - k, q * k in this order, as feature set "concat" does.
"""

import sys
from collections.abc import Mapping

import torch

import din_kernels as dk

PREFIX = "attention.local_att."


def unit_from(state: Mapping[str, torch.Tensor], activation: str = "sigmoid", softmax: bool = False):
    """The unit of a DIN with this `att_activation` and `att_weight_normalization`."""
    layers = sum(name.startswith(f"{PREFIX}dnn.linears.") and name.endswith("weight") for name in state)
    names = [*(f"{PREFIX}dnn.linears.{layer}" for layer in range(layers)), f"{PREFIX}dense"]
    weights = [state[f"{name}.weight"] for name in names]
    dim, hidden = weights[0].shape[1] // 4, tuple(len(weight) for weight in weights[:-1])
    unit = dk.nn.LocalActivationUnit(dim, hidden, activation, normalize="softmax" if softmax else "none")
    for linear, name in zip(unit.linears, names, strict=True):
        linear.load_state_dict({key: state[f"{name}.{key}"] for key in ("weight", "bias")})
    return unit


def made_up(dim: int = 8, hidden: tuple[int, ...] = (64, 16)) -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of that library's: items of `dim`, attention of `hidden` widths."""
    state = {"embedding_dict.item_id.weight": torch.randn(100, dim)}
    widths = [4 * dim, *hidden]
    for layer, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        state[f"{PREFIX}dnn.linears.{layer}.weight"] = torch.randn(b, a) / a**0.5
        state[f"{PREFIX}dnn.linears.{layer}.bias"] = torch.randn(b)
    return state | {f"{PREFIX}dense.weight": torch.randn(1, hidden[-1]), f"{PREFIX}dense.bias": torch.randn(1)}


def main() -> None:
    torch.manual_seed(0)
    state = torch.load(sys.argv[1], weights_only=True) if len(sys.argv) > 1 else made_up()
    unit = unit_from(state)
    query, history = torch.randn(2, unit.dim), torch.randn(2, 5, unit.dim)
    pooled = unit(query, history, lengths=torch.tensor([5, 3]))
    print(f"unit of width {unit.dim}, hidden {unit.hidden}: interests of {len(pooled)} users, {pooled.norm():.4f}")


if __name__ == "__main__":
    main()
