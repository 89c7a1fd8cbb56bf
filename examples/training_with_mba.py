"""Trains DIN with mini-batch aware regularization (paper, section 5.1) inside a sparse optimizer.

    python examples/training_with_mba.py

The regularizer shrinks the rows of the batch alone, by lambda / n_j for id j, which n_j training samples hold.
`din-kernels train --mba` does the same with a data set of yours.
"""

import torch

import din_kernels as dk
from din_kernels import data
from din_kernels.models import DIN, DINConfig, inputs_of
from din_kernels.training import table_counts


def main() -> None:
    torch.manual_seed(0)
    generated = data.generate(seed=0, users=200)
    interactions, samples = generated.interactions, generated.split.train
    model = DIN(DINConfig.default(interactions.n_items, interactions.n_categories, dim=16, sparse=True))

    counts = table_counts(model.config, samples, interactions)  # n_j of every item and category
    tables = [
        {"params": [table.weight], "mba": dk.MBA(coeff=0.01, counts=counts[name])}
        for name, table in model.embeddings.items()
    ]
    in_tables = {id(table.weight) for table in model.embeddings.values()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in in_tables]
    optimizers = [dk.optim.SparseAdagrad(tables, lr=0.1), torch.optim.Adam(rest, lr=1e-2)]

    for epoch in range(2):
        losses = []
        for batch in data.batches(samples, interactions, 32, shuffle=True, epoch=epoch):
            for optimizer in optimizers:
                optimizer.zero_grad()
            logits = model(inputs_of(batch))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.4f}")


if __name__ == "__main__":
    main()
