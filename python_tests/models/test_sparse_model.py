"""Claims about a model with sparse tables: memory by the batch, not by table or history; accumulation, clipping."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from din_kernels import MBA, optim
from din_kernels.benchmarking.memory import peak_bytes
from din_kernels.models import DIN, DINConfig, Table

ROOT = Path(__file__).resolve().parents[2]
ROWS, DIM = 200_000, 32


def inputs(users: int, length: int, rows: int, per_user: int = 2, seed: int = 0) -> dict:
    """`users` histories of `length` behaviours each, `per_user` candidates for each."""
    generator = torch.Generator().manual_seed(seed)

    def ids(high, n):
        return torch.randint(0, high, (n,), generator=generator)

    behaviours, queries = users * length, users * per_user
    return {
        "candidate": {"item": ids(rows, queries), "category": ids(20, queries)},
        "histories": {
            "behaviours": {
                "offsets": torch.arange(0, behaviours + 1, length),
                "item": ids(rows, behaviours),
                "category": ids(20, behaviours),
            }
        },
        "query_to_user": torch.arange(users).repeat_interleave(per_user),
    }


def optimizers(model: DIN) -> list[torch.optim.Optimizer]:
    tables = [table.weight for table in model.embeddings.values()]
    rest = [p for p in model.parameters() if all(p is not weight for weight in tables)]
    if not model.config.sparse:
        return [torch.optim.Adagrad(model.parameters())]
    groups = [{"params": [weight], "mba": MBA(0.01, torch.ones(len(weight)))} for weight in tables]
    return [optim.SparseAdagrad(groups), torch.optim.Adagrad(rest)]


def training_step(sparse: bool):
    """A training step on a table far larger than its batch."""
    model = DIN(DINConfig.default(ROWS, 20, DIM, sparse=sparse))
    steppers, given = optimizers(model), inputs(64, 10, ROWS)

    def step():
        for optimizer in steppers:
            optimizer.zero_grad()
        model(given).square().sum().backward()
        for optimizer in steppers:
            optimizer.step()

    return step


def forward(users: int, length: int):
    """A forward without gradients over long histories."""
    model = DIN(DINConfig.default(1000, 20, DIM, sparse=True)).eval()
    return functools.partial(torch.no_grad()(model), inputs(users, length, 1000))


@pytest.fixture
def peak(monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "python_tests"), os.environ.get("PYTHONPATH", "")])
    )

    def measured(prepare, *arguments):
        found = peak_bytes(functools.partial(prepare, *arguments))
        return pytest.skip("peak memory cannot be measured here") if found is None else found

    return measured


def test_a_step_with_sparse_tables_allocates_nothing_of_the_tables_size(peak):
    table = ROWS * DIM * 4
    assert peak(training_step, True) < 0.25 * table
    assert peak(training_step, False) > 0.9 * table, "a dense gradient would show"


def test_a_forward_never_builds_the_embeddings_of_the_histories(peak):
    users, length = 64, 2000
    assert peak(forward, users, length) < 0.25 * users * length * 2 * DIM * 4


def small() -> DIN:
    torch.manual_seed(0)
    return DIN(DINConfig.default(50, 20, 4, sparse=True, activation="prelu", embedding_std=0.5)).double()


def test_accumulated_parts_take_the_step_of_the_whole_batch():
    """One mini-batch aware term a step, however many backwards; Dice would see other batches, so PReLU."""
    whole, parts = small(), small()
    given = inputs(8, 3, 50)
    for model, pieces in ((whole, [given]), (parts, [split(given, 0, 4), split(given, 4, 8)])):
        steppers = optimizers(model)
        for piece in pieces:
            logits = model(piece)
            labels = (torch.arange(len(logits)) % 2).double()
            (binary_cross_entropy_with_logits(logits, labels, reduction="sum") / 16).backward()
        for optimizer in steppers:
            optimizer.step()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def split(given: dict, first: int, last: int) -> dict:
    """Users first .. last of a batch with 3 behaviours and 2 candidates each."""
    history = given["histories"]["behaviours"]
    return {
        "candidate": {name: ids[2 * first : 2 * last] for name, ids in given["candidate"].items()},
        "histories": {
            "behaviours": {
                "offsets": torch.arange(0, 3 * (last - first) + 1, 3),
                **{name: history[name][3 * first : 3 * last] for name in ("item", "category")},
            }
        },
        "query_to_user": torch.arange(last - first).repeat_interleave(2),
    }


def test_clipping_a_sparse_model_equals_clipping_a_dense_one():
    sparse, given = small(), inputs(8, 3, 50)
    dense = DIN(DINConfig.default(50, 20, 4, activation="prelu")).double()
    dense.load_state_dict(copy.deepcopy(sparse.state_dict()))
    norms = []
    for model, clip in ((sparse, optim.clip_grad_norm_), (dense, torch.nn.utils.clip_grad_norm_)):
        model(given).square().sum().backward()
        norms.append(clip(model.parameters(), 0.1))
    torch.testing.assert_close(*norms, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        sparse.embeddings["item"].weight.grad.to_dense(), dense.embeddings["item"].weight.grad, rtol=1e-9, atol=1e-12
    )


def test_bfloat16_model_trains_with_sparse_tables():
    """Tables used once a step: torch cannot add two sparse gradients in half precision on a CPU."""
    tables = {name: Table(50, 4) for name in ("item", "category", "past item", "past category")}
    history = [("item", "past item"), ("category", "past category")]
    config = dataclasses.replace(small().config, tables=tables, histories={"behaviours": history})
    torch.manual_seed(0)
    model, given = DIN(config).bfloat16(), inputs(8, 3, 50)
    steppers = optimizers(model)
    losses = []
    for _ in range(30):
        for optimizer in steppers:
            optimizer.zero_grad()
        logits = model(given).float()
        loss = binary_cross_entropy_with_logits(logits, (torch.arange(len(logits)) % 2).float())
        loss.backward()
        for optimizer in steppers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert model.embeddings["item"].weight.dtype == torch.bfloat16
