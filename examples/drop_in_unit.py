"""The local activation unit in a model of your own, in place of a padded MLP.

    python examples/drop_in_unit.py

The histories are padded here, as a data loader gives them. The unit reads the valid behaviours alone, and a packed
history gives the same numbers.
"""

import torch
from torch import nn

import din_kernels as dk


class ClickModel(nn.Module):
    """Scores one candidate per user from its interest in the history."""

    def __init__(self, items: int, dim: int):
        super().__init__()
        self.item = nn.Embedding(items, dim, padding_idx=0)
        self.attention = dk.nn.LocalActivationUnit(dim, hidden=(80, 40))
        self.top = nn.Sequential(nn.Linear(2 * dim, 64), dk.nn.Dice(64), nn.Linear(64, 1))

    def forward(self, candidate, history, lengths):
        query = self.item(candidate)  # [B, D]
        interest = self.attention(query, self.item(history), lengths=lengths)  # [B, D]
        return self.top(torch.cat([interest, query], dim=1)).squeeze(1)  # [B]


def main() -> None:
    torch.manual_seed(0)
    model = ClickModel(items=1000, dim=32)
    candidate, lengths = torch.randint(1, 1000, (64,)), torch.randint(0, 21, (64,))
    history = torch.randint(1, 1000, (64, 20))
    history[torch.arange(20) >= lengths[:, None]] = 0  # padding

    loss = nn.functional.binary_cross_entropy_with_logits(model(candidate, history, lengths), torch.ones(64))
    loss.backward()
    print(f"loss {loss.item():.4f}, gradient of the first layer {model.attention.linears[0].weight.grad.norm():.4f}")

    query, rows = model.item(candidate), model.item(history)
    packed = dk.Jagged.from_padded(rows, lengths)  # values [N, D], offsets [B + 1]
    padded = model.attention(query, rows, lengths=lengths)
    torch.testing.assert_close(model.attention(query, packed), padded)
    print(f"{packed.num_rows} packed behaviours give what {history.numel()} padded ones give")


if __name__ == "__main__":
    main()
