"""Claims about rows that pad a table: an id in a Gather that gets no gradient, as under nn.Embedding(padding_idx)."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import din_kernels as dk

OFFSETS = torch.tensor([0, 3, 3, 7])
IDS = [torch.tensor([0, 2, 1, 0, 4, 4, 0]), torch.tensor([1, 1, 0, 2, 2, 1, 1])]
QUERY_IDS = [torch.tensor([0, 3, 2]), torch.tensor([1, 0, 2])]


def tables(sparse: bool, dtype=torch.float64, seed=0) -> list[nn.Embedding]:
    torch.manual_seed(seed)
    made = [nn.Embedding(5, 4, padding_idx=0, sparse=sparse), nn.Embedding(3, 2, padding_idx=1, sparse=sparse)]
    for table in made:
        nn.init.normal_(table.weight)  # a padding row need not be zero
    return [table.to(dtype) for table in made]


def unit() -> dk.nn.LocalActivationUnit:
    torch.manual_seed(1)
    return dk.nn.LocalActivationUnit(6, (7,), dtype=torch.float64)


def grads_of(given, pooled) -> list[torch.Tensor]:
    pooled.square().sum().backward()
    return [table.weight.grad for table in given]


@pytest.mark.parametrize("given", ["embeddings", "weights"])
@pytest.mark.parametrize("query_by_id", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("forced", ["cpu", "reference"])
def test_a_padding_row_has_the_gradient_that_nn_embedding_gives_it(forced, sparse, query_by_id, given):
    """The right gradients are those of torch's own lookups, rows copied out, in double."""
    ours, theirs, attention = tables(sparse), tables(False), unit()
    query = torch.randn(3, 6, dtype=torch.float64)
    looked = [torch.cat([table(each) for table, each in zip(theirs, ids, strict=True)], -1) for ids in (QUERY_IDS, IDS)]
    expected = grads_of(theirs, attention(looked[0] if query_by_id else query, dk.Jagged(looked[1], OFFSETS)))
    options = {"sparse": sparse, "padding_idx": [0, 1]} if given == "weights" else {}
    read = [table.weight for table in ours] if given == "weights" else ours
    gathers = [dk.Gather(QUERY_IDS, read, **options), dk.Gather(IDS, read, OFFSETS, **options)]
    with dk.use_backend(forced):
        found = grads_of(ours, attention(gathers[0] if query_by_id else query, gathers[1]))
    for at, (grad, right) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(grad.to_dense(), right, rtol=1e-10, atol=1e-12)
        assert not right[at].any() and grad.is_sparse == sparse
        if sparse:
            assert at not in grad._indices(), "a padding row is not among the batch's, whatever an optimizer does"


@pytest.mark.parametrize("sparse", [False, True])
def test_a_compiled_call_gives_a_padding_row_no_gradient_either(sparse):
    torch._dynamo.reset()
    eager, traced, attention = tables(sparse), tables(sparse), unit()
    query = torch.randn(3, 6, dtype=torch.float64)

    def call(given):
        weights = [table.weight for table in given]
        return attention(query, dk.Gather(IDS, weights, OFFSETS, sparse=sparse, padding_idx=[0, 1]))

    expected = grads_of(eager, call(eager))
    found = grads_of(traced, torch.compile(call, fullgraph=True, backend="aot_eager")(traced))
    for at, (grad, right) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(grad.to_dense(), right.to_dense(), rtol=1e-12, atol=1e-12)
        assert not sparse or at not in grad._indices()


@pytest.mark.slow
@pytest.mark.parametrize("padding_idx", [None, 0])
def test_sparse_gradients_of_a_graph_of_inductor_hold_memory_of_their_own(padding_idx):
    """Gradients of one shape, joined in the graph: without a copy, one of them held what was made for the other."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = [nn.Embedding(5, 3, sparse=True).double() for _ in range(2)]
    traced, attention = copy.deepcopy(eager), unit()

    def call(given):
        weights, options = [table.weight for table in given], {"sparse": True, "padding_idx": padding_idx}
        return attention(dk.Gather(QUERY_IDS, weights, **options), dk.Gather(IDS, weights, OFFSETS, **options))

    expected = grads_of(eager, call(eager))
    found = grads_of(traced, torch.compile(call, fullgraph=True)(traced))
    for grad, right in zip(found, expected, strict=True):
        torch.testing.assert_close(grad.to_dense(), right.to_dense(), rtol=1e-12, atol=1e-12)


def test_settings_of_an_embedding_are_taken_over_and_survive_every_copy():
    gather = dk.Gather(IDS, tables(False), OFFSETS)
    assert gather.padding_idx == [0, 1] and gather.sparse is False
    assert dk.Gather(IDS[0], tables(True)[0].weight).padding_idx == [None]
    assert dk.Gather(IDS[0], tables(True)[0].weight, padding_idx=2).padding_idx == [2]
    assert dk.Gather(IDS, tables(True), padding_idx=[None, 2]).padding_idx == [None, 2]
    leaves, spec = pytree.tree_flatten(gather)
    copies = [
        pytree.tree_unflatten(leaves, pytree.treespec_loads(pytree.treespec_dumps(spec))),
        copy.deepcopy(gather),
        pickle.loads(pickle.dumps(gather)),
        gather.to(torch.float32),
    ]
    for each in copies:
        assert (each.padding_idx, each.sparse) == ([0, 1], False)
        assert torch.equal(each.offsets, OFFSETS) and torch.equal(each.ids[1], IDS[1])
    assert copies[-1].dtype == torch.float32 and copies[-1].ids[0].dtype == torch.int64


class Scaled(nn.Embedding):
    def forward(self, ids):
        return 2 * super().forward(ids)


def hooked():
    table = nn.Embedding(5, 4)
    table.register_forward_hook(lambda module, args, rows: None)
    return table


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Embedding(5, 4, max_norm=1.0), ValueError, r"tables\[0\] must be .* max_norm=None, got 1.0"),
        (lambda: nn.Embedding(5, 4, scale_grad_by_freq=True), ValueError, "scale_grad_by_freq=False, got True"),
        (lambda: Scaled(5, 4), TypeError, r"tables\[0\] must be a tensor or a plain nn.Embedding.*is a Scaled"),
        (hooked, TypeError, r"plain nn.Embedding, whose weight alone is read; tables\[0\] has hooks"),
        (lambda: nn.Linear(5, 4), TypeError, "is a Linear, not a Embedding"),
    ],
)
def test_an_embedding_that_computes_more_than_its_rows_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        dk.Gather(IDS[0], make())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"padding_idx": 5}, IndexError, r"padding_idx must lie in 0..4 \(rows of tables\[0\]\), got 5"),
        ({"padding_idx": -1}, IndexError, "padding_idx must lie in 0..4"),
        ({"padding_idx": 0.0}, TypeError, "padding_idx must be an integer, got float"),
        ({"padding_idx": [0, 1]}, ValueError, r"padding_idx must have one entry per table \(1\), got 2"),
        ({"sparse": 1}, TypeError, "sparse must be a bool, got int"),
    ],
)
def test_a_wrong_setting_of_a_gather_is_named(options, error, message):
    with pytest.raises(error, match=message):
        dk.Gather(IDS[0], torch.randn(5, 4), **options)


def test_embeddings_must_agree_in_sparse_unless_it_is_given():
    mixed = [tables(True)[0], tables(False)[1]]
    with pytest.raises(ValueError, match="tables must agree in sparse"):
        dk.Gather(IDS, mixed)
    assert dk.Gather(IDS, mixed, sparse=True).sparse is True


# --- batches on their way to a device ---------------------------------------------------------------------------------

BATCHES = {
    "Jagged": lambda: dk.Jagged(torch.randn(7, 3), OFFSETS),
    "Padded": lambda: dk.Padded(torch.randn(3, 4, 2), torch.tensor([1, 4, 0]), padding_side="left"),
    "Padded, masked": lambda: dk.Padded(torch.randn(3, 4, 2), mask=torch.rand(3, 4) > 0.5),
    "Gather": lambda: dk.Gather(IDS, [torch.randn(5, 4), torch.randn(3, 2)], OFFSETS, padding_idx=[0, None]),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_is_loaded_by_torch_load_with_weights_only(kind):
    batch, file = BATCHES[kind](), io.BytesIO()
    torch.save({"batch": batch}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["batch"]
    assert type(loaded) is type(batch)
    pairs = zip(pytree.tree_leaves(loaded), pytree.tree_leaves(batch), strict=True)
    assert all(ours is theirs or torch.equal(ours, theirs) for ours, theirs in pairs)
    assert pytree.tree_structure(loaded) == pytree.tree_structure(batch)


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_moves_without_waiting_and_pins_what_is_copied(kind, monkeypatch):
    batch, moved, pinned = BATCHES[kind](), [], []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: (moved.append((a, k)), to(self, *a, **k))[1])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (pinned.append(self), self)[1])
    tensors = [each for each in pytree.tree_leaves(batch) if each is not None]
    for arguments in (((torch.device("meta"),), {"non_blocking": True}), (("meta", torch.float16, True), {})):
        moved.clear()
        there = batch.to(*arguments[0], **arguments[1])
        assert all(each.is_meta for each in pytree.tree_leaves(there) if each is not None)
        assert len(moved) == len(tensors)
        assert all(True in a or k.get("non_blocking") for a, k in moved)
    tables_of = getattr(batch, "tables", [])
    assert type(batch.pin_memory()) is type(batch)
    assert len(pinned) == len(tensors) - len(tables_of)


@pytest.mark.parametrize("kind", BATCHES)
def test_default_collate_says_how_to_pack(kind):
    batch = BATCHES[kind]()
    name = type(batch).__name__
    with pytest.raises(TypeError, match=rf"default_collate does not stack {name}s.*Jagged.from_lengths"):
        torch.utils.data.default_collate([batch, batch])
