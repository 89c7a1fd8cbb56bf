"""Claims about examples/: each runs, is short, and says what it promises."""

from __future__ import annotations

import contextlib
import functools
import io
import runpy
import sys
from unittest import mock

import pytest
import torch
from support.scripts import ROOT, module_of

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAID = {
    "deepctr_checkpoint": "unit of width 8, hidden (64, 16): interests of 2 users",
    "drop_in_unit": "packed behaviours give what 1280 padded ones give",
    "many_candidates": "the 3 best of 500 candidates: [",
    "tables_by_id": "gradient of the items: sparse, rows [1, 4, 5, 7, 8, 9]",
    "training_with_mba": "epoch 2: loss 0.",
}


@functools.cache
def printed(name: str) -> str:
    """What an example prints, run as a script."""
    output = io.StringIO()
    path = str(ROOT / "examples" / f"{name}.py")
    with torch.random.fork_rng(), contextlib.redirect_stdout(output), mock.patch.object(sys, "argv", [path]):
        runpy.run_path(path, run_name="__main__")
    return output.getvalue()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_says_what_it_promises(path):
    assert SAID[path.stem] in printed(path.stem)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_a_screen_and_says_how_it_is_run(path):
    text = path.read_text()
    assert 20 <= len(text.splitlines()) <= 60 and f"    python examples/{path.name}" in text


def test_training_with_mba_learns():
    first, second = (float(line.split()[-1]) for line in printed("training_with_mba").splitlines())
    assert second < first - 0.05


def test_a_step_leaves_rows_of_other_ids_alone():
    assert "changed the rows [1, 4, 5, 7, 8, 9] of 10000" in printed("tables_by_id")


def padded_attention(state, query, history, lengths, softmax):
    """The formula of DeepCTR-Torch's attention with sigmoid, in plain PyTorch on padded histories: `[B, D]`."""
    linear = torch.nn.functional.linear
    q = query[:, None].expand_as(history)
    hidden = torch.cat([q, history, q - history, q * history], dim=-1)
    for layer in range(2):
        name = f"attention.local_att.dnn.linears.{layer}"
        hidden = torch.sigmoid(linear(hidden, state[f"{name}.weight"], state[f"{name}.bias"]))
    dense = "attention.local_att.dense"
    score = linear(hidden, state[f"{dense}.weight"], state[f"{dense}.bias"]).squeeze(-1)
    valid = torch.arange(history.shape[1]) < lengths[:, None]
    if softmax:
        score = score.masked_fill(~valid, float("-inf")).softmax(dim=1)
    return torch.einsum("bt,btd->bd", score.masked_fill(~valid, 0), history)


@pytest.mark.parametrize("softmax", [False, True])
def test_a_checkpoint_of_deepctr_torch_pools_as_its_formula_says(softmax):
    example = module_of("examples/deepctr_checkpoint.py")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = example.made_up()
        query, history, lengths = torch.randn(4, 8), torch.randn(4, 6, 8), torch.tensor([6, 1, 3, 4])
    pooled = example.unit_from(state, softmax=softmax)(query, history, lengths=lengths)
    torch.testing.assert_close(pooled, padded_attention(state, query, history, lengths, softmax))


def test_a_checkpoint_pools_as_deepctr_torch_itself_does():
    sequence = pytest.importorskip("deepctr_torch.layers.sequence", reason="needs deepctr-torch")
    example = module_of("examples/deepctr_checkpoint.py")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        state = example.made_up()
        query, history, lengths = torch.randn(4, 8), torch.randn(4, 6, 8), torch.tensor([6, 1, 3, 4])
    theirs = sequence.AttentionSequencePoolingLayer((64, 16), "sigmoid", embedding_dim=8)
    own = {name.removeprefix("attention."): value for name, value in state.items() if name.startswith("attention.")}
    theirs.load_state_dict(own)
    expected = theirs(query[:, None], history, lengths[:, None]).squeeze(1)
    torch.testing.assert_close(example.unit_from(state)(query, history, lengths=lengths), expected)
