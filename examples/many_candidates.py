"""Scores 500 candidates of one user, whose history is given once and not copied.

    python examples/many_candidates.py

The unit reads the history where it lies; a candidate names its history by `query_to_user`.
"""

import torch

import din_kernels as dk


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    unit = dk.nn.LocalActivationUnit(64, hidden=(80, 40)).eval()
    candidates, history = torch.randn(500, 64), torch.randn(100, 64)

    # One user: every candidate attends to history 0.
    one_user = dk.Jagged(history, torch.tensor([0, 100]))
    everyone = torch.zeros(500, dtype=torch.int64)
    pooled, weights = unit(candidates, one_user, query_to_user=everyone, return_weights=True)  # [500, 64]

    # The same candidates as one entry of a padded batch [B, C, D].
    again = unit(candidates[None], history[None])  # [1, 500, 64]
    torch.testing.assert_close(again[0], pooled)

    # What a copy of the history for every candidate gives, 500 times the memory.
    copied = unit(candidates, history.expand(500, -1, -1), lengths=torch.full((500,), 100))
    torch.testing.assert_close(copied, pooled)

    scores = (pooled * candidates).sum(1)
    best = scores.topk(3).indices
    print(f"the 3 best of {len(candidates)} candidates: {best.tolist()}")
    for candidate in best.tolist():
        own = weights.values[weights.offsets[candidate] : weights.offsets[candidate + 1]]  # [100]
        print(f"candidate {candidate} looks most at behaviour {own.argmax().item()}")


if __name__ == "__main__":
    main()
