"""A history given as ids into embedding tables: the kernel fetches the rows, and the tables get sparse gradients.

    python examples/tables_by_id.py

The `[N, D]` rows of all behaviours are never written to memory.
"""

import torch
from torch import nn

import din_kernels as dk


def main() -> None:
    torch.manual_seed(0)
    items, categories = nn.Embedding(10_000, 48, sparse=True), nn.Embedding(50, 16, sparse=True)
    unit = dk.nn.LocalActivationUnit(48 + 16)
    optimizer = dk.optim.SparseSGD([items.weight, categories.weight], lr=0.1)

    # Two users with 3 and 4 behaviours; each behaviour and each candidate is an item and its category.
    offsets = torch.tensor([0, 3, 7])
    history_ids = [torch.tensor([5, 9, 5, 7, 8, 9, 1]), torch.tensor([0, 1, 0, 2, 2, 1, 3])]
    candidate_ids = [torch.tensor([4, 7]), torch.tensor([1, 2])]
    tables = [items.weight, categories.weight]
    candidate, history = dk.Gather(candidate_ids, tables), dk.Gather(history_ids, tables, offsets=offsets)
    pooled = unit(candidate, history)  # [2, 64]
    pooled.square().sum().backward()
    grad = items.weight.grad
    layout = "sparse" if grad.is_sparse else "dense"
    print(f"gradient of the items: {layout}, rows {grad.coalesce().indices()[0].tolist()}")

    # The same numbers from rows that are copied out.
    rows = [torch.cat([items(a), categories(b)], dim=1) for a, b in (candidate_ids, history_ids)]
    torch.testing.assert_close(unit(rows[0], dk.Jagged(rows[1], offsets)), pooled)

    before = items.weight.detach().clone()
    optimizer.step()
    changed = (items.weight != before).any(dim=1).nonzero().flatten().tolist()
    print(f"a step of the optimizer changed the rows {changed} of {items.num_embeddings}")


if __name__ == "__main__":
    main()
