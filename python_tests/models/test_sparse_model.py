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

from din_kernels import MBA, Jagged, optim
from din_kernels.benchmarking.memory import peak_bytes
from din_kernels.models import DIN, DINConfig, EmbeddingMLP, Table

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


NARROW = [torch.bfloat16, torch.float16]


def trained(model: DIN, given: dict, autocast: bool = False) -> list[float]:
    """Losses of 30 steps."""
    steppers, losses = optimizers(model), []
    for _ in range(30):
        for optimizer in steppers:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(given).float()
        loss = binary_cross_entropy_with_logits(logits, (torch.arange(len(logits)) % 2).float())
        loss.backward()
        for optimizer in steppers:
            optimizer.step()
        losses.append(loss.item())
    return losses


def in_dtypes(kind, **dtypes) -> torch.nn.Module:
    """A small model whose parts, by the names of their parameters' beginnings, have the given dtypes."""
    torch.manual_seed(0)
    model = kind(DINConfig.default(50, 20, 4, sparse=True, activation="prelu", embedding_std=0.5, item_bias=True))
    for name, parameter in model.named_parameters():
        for part, dtype in dtypes.items():
            if name.startswith(part.replace("_", ".")):
                parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("kind", [DIN, EmbeddingMLP])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("what", ["all of it", "tables", "one table"])
def test_a_model_with_narrow_tables_has_the_gradients_of_a_double_one(what, dtype, kind):
    """Every table is used by candidate and history: its gradient is the sum of both."""
    parts = {"all of it": {"": dtype}, "tables": {"embeddings": dtype}, "one table": {"embeddings_item": dtype}}[what]
    narrow, given = in_dtypes(kind, **parts), inputs(8, 3, 50)
    exact, dense = copy.deepcopy(narrow).double(), copy.deepcopy(narrow)
    for table in dense.embeddings.values():
        table.sparse = False
    for model in (narrow, exact, dense):
        logits = model(given)
        (logits.double() * torch.linspace(0.5, 1.5, len(logits), dtype=torch.float64)).sum().backward()
    for name, table in narrow.embeddings.items():
        assert table.weight.grad.is_sparse and table.weight.grad.dtype == table.weight.dtype
        expected = exact.embeddings[name].weight.grad.to_dense()
        error, error_of_torch = (
            (each.embeddings[name].weight.grad.double().to_dense() - expected).abs().max() for each in (narrow, dense)
        )
        assert error <= 2 * error_of_torch + torch.finfo(dtype).eps * expected.abs().max(), name


@pytest.mark.parametrize(
    ("parts", "autocast"),
    [
        ({"": torch.bfloat16}, False),
        ({"embeddings": torch.bfloat16}, False),
        ({"embeddings": torch.bfloat16}, True),
        ({"embeddings_item": torch.bfloat16}, True),
        ({}, True),
    ],
)
def test_narrow_and_mixed_tables_train(parts, autocast):
    model = in_dtypes(DIN, **parts)
    losses = trained(model, inputs(8, 3, 50), autocast)
    assert losses[-1] < 0.9 * losses[0]
    assert model.embeddings["item"].weight.dtype == (torch.bfloat16 if parts else torch.float32)


def test_tables_of_candidate_and_history_may_differ_in_dtype():
    tables = {name: Table(50, 4) for name in ("item", "category", "past item", "past category")}
    history = [("item", "past item"), ("category", "past category")]
    config = dataclasses.replace(small().config, tables=tables, histories={"behaviours": history})
    torch.manual_seed(0)
    mixed, given = DIN(config), inputs(8, 3, 50)
    for name in ("past item", "past category"):
        mixed.embeddings[name].bfloat16()
    wide = copy.deepcopy(mixed).float()
    torch.testing.assert_close(mixed(given), wide(given), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        mixed.predict_weights(given).values, wide.predict_weights(given).values, rtol=1e-4, atol=1e-4
    )


# --- torch.compile and torch.export -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DIN, EmbeddingMLP])
def test_a_step_compiled_by_inductor_has_the_gradients_of_the_eager_one(kind):
    """Inductor reuses the memory of a sparse gradient that is made inside its graph, without a word."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager, given = kind(DINConfig.default(50, 20, 8, sparse=True, item_bias=True, embedding_std=0.5)), inputs(8, 3, 50)
    exact, traced = copy.deepcopy(eager).double(), copy.deepcopy(eager)
    compiled = torch.compile(traced)
    for model in (exact, compiled):
        model(given).square().sum().backward()
    for (name, ours), expected in zip(traced.named_parameters(), exact.parameters(), strict=True):
        assert ours.grad.is_sparse == ("embeddings" in name or "item_bias" in name)
        ours, expected = ours.grad.to_dense().double(), expected.grad.to_dense()
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max(), name


def test_a_whole_graph_around_sparse_tables_is_refused_with_the_reason():
    torch._dynamo.reset()
    compiled = torch.compile(small(), fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="sparse gradients of din_kernels.models are made outside"):
        compiled(inputs(8, 3, 50))
    with torch.no_grad():
        given = inputs(8, 3, 50)
        torch.testing.assert_close(compiled(given), small()(given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_with_sparse_tables_exports(strict):
    model, given = small().eval(), inputs(8, 3, 50)
    exported = torch.export.export(model, (given,), strict=strict)
    torch.testing.assert_close(exported.module()(given), model(given), rtol=0, atol=0)
    gathers = [node for node in exported.graph.nodes if "local_activation" in str(node.target)]
    assert len(gathers) == 1 and len(gathers[0].args[3]) == 2, "histories are read by id"


# --- tables that are more than a plain nn.Embedding -------------------------------------------------------------------


def with_padding(table):
    torch.manual_seed(1)
    return torch.nn.Embedding(*table.weight.shape, padding_idx=3, sparse=table.sparse).double()


def hooked(table):
    table.register_forward_hook(lambda module, args, rows: 2 * rows)
    return table


class Halved(torch.nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) / 2


def of_another_class(table):
    made = Halved(*table.weight.shape, sparse=table.sparse).double()
    made.load_state_dict(table.state_dict())
    return made


def renormalized(table):
    table.max_norm = 0.3
    return table


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("change", [with_padding, hooked, of_another_class, renormalized])
@pytest.mark.parametrize("kind", [DIN, EmbeddingMLP])
def test_a_table_that_is_no_plain_embedding_is_called_for_candidates_and_histories_alike(kind, change, sparse):
    torch.manual_seed(0)
    changes = {"sparse": sparse, "activation": "prelu", "embedding_std": 0.5}
    model = kind(DINConfig.default(50, 20, 4, **changes)).double()
    plain, given = copy.deepcopy(model), inputs(8, 3, 50)
    model.embeddings["item"] = change(model.embeddings["item"])
    used = torch.unique(torch.cat([given["candidate"]["item"], given["histories"]["behaviours"]["item"]]))
    with torch.no_grad():  # the same rows in a plain table
        plain.embeddings["item"].weight[used] = copy.deepcopy(model.embeddings["item"])(used)
    torch.testing.assert_close(model(given), plain(given), rtol=1e-12, atol=1e-12)
    for each in (model, plain):
        each(given).square().sum().backward()
    ours, expected = (each.embeddings["item"].weight.grad.to_dense() for each in (model, plain))
    expected = expected * {hooked: 2, of_another_class: 0.5}.get(change, 1)
    if change is with_padding:
        assert expected[3].abs().max() > 0
        expected[3] = 0
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_several_categories_of_an_item_are_averaged_by_any_table():
    plain, given = small(), inputs(8, 3, 50)

    def several(ids):
        lengths = torch.arange(len(ids)) % 3
        return Jagged.from_lengths(torch.arange(int(lengths.sum())) % 20, lengths)

    given["candidate"]["category"] = several(given["candidate"]["category"])
    given["histories"]["behaviours"]["category"] = several(given["histories"]["behaviours"]["category"])
    for kind in (DIN, EmbeddingMLP):
        torch.manual_seed(0)
        plain = kind(plain.config).double()
        called = copy.deepcopy(plain)
        called.embeddings["category"].register_forward_hook(lambda module, args, rows: None)
        for model in (plain, called):
            model(given).square().sum().backward()
        for ours, expected in zip(called.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad.to_dense(), expected.grad.to_dense(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [DIN, EmbeddingMLP])
def test_a_model_from_the_meta_device_is_restored_by_reset_parameters(kind):
    config = DINConfig.default(3000, 20, 8, item_bias=True)
    with torch.device("meta"):
        model = kind(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for each in model.state_dict().values():
            each.fill_(torch.nan)
    model.reset_parameters()
    made = kind(config).state_dict()
    for name, value in model.state_dict().items():
        assert value.isfinite().all(), name
        if set(made[name].unique().tolist()) in ({0.0}, {1.0}):  # of Dice, the item bias, the unit's last bias
            assert torch.equal(value, made[name]), name
    assert model.embeddings["item"].weight.std().item() == pytest.approx(0.01, rel=0.05)
