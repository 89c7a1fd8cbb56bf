"""Claims about where a `use_backend` block is seen: in threads, and by forwards that checkpointing computes again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import din_kernels as dk
from din_kernels import backends
from din_kernels.backends import Request

REQUEST = Request("local_activation", "cpu", torch.float32, backends.TYPICAL_OPTIONS)


def selected() -> str:
    return backends.select(REQUEST)


def in_a_thread(run):
    """What `run` returns in a thread that is started now."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def test_a_thread_started_inside_a_block_follows_it():
    with dk.use_backend("reference"):
        assert in_a_thread(selected) == "reference"
    assert in_a_thread(selected) == "cpu"


def test_a_thread_that_runs_already_follows_the_block_while_it_is_open():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(selected).result() == "cpu"
        with dk.use_backend("reference"):
            with dk.use_backend("cpu"):
                assert pool.submit(selected).result() == "cpu"
            assert pool.submit(selected).result() == "reference"
        assert pool.submit(selected).result() == "cpu"


def test_a_thread_follows_its_own_block_before_any_other():
    def own():
        with dk.use_backend("reference"):
            return selected()

    with dk.use_backend("cpu"):
        assert in_a_thread(own) == "reference" and selected() == "cpu"


def test_ops_that_a_block_does_not_name_are_chosen_as_without_it_in_a_thread_too():
    with dk.use_backend("reference", ops=("dice",)):
        assert in_a_thread(selected) == "cpu"


@pytest.mark.parametrize("first", ["cpu", "reference"])
def test_threads_with_blocks_of_their_own_stay_apart(first):
    second = {"cpu": "reference", "reference": "cpu"}[first]
    both_are_open, both_have_chosen = threading.Barrier(2), threading.Barrier(2)

    def chosen(name):
        with dk.use_backend(name):
            both_are_open.wait(60)
            found = selected()
            both_have_chosen.wait(60)
            return found

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(chosen, (first, second))) == [first, second]


def test_the_main_thread_follows_no_block_of_another_thread():
    opened, seen = threading.Event(), threading.Event()

    def other():
        with dk.use_backend("reference"):
            opened.set()
            seen.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    opened.wait(60)
    try:
        assert selected() == "cpu"
    finally:
        seen.set()
        thread.join()


def test_blocks_that_end_in_another_order_than_they_began_leave_nothing_behind():
    first, second = dk.use_backend("reference"), dk.use_backend("cpu")
    with ThreadPoolExecutor(1) as a, ThreadPoolExecutor(1) as b, ThreadPoolExecutor(1) as c:
        a.submit(first.__enter__).result()
        b.submit(second.__enter__).result()
        assert c.submit(selected).result() == "cpu"
        a.submit(first.__exit__, None, None, None).result()
        assert c.submit(selected).result() == "cpu"
        b.submit(second.__exit__, None, None, None).result()
    assert not backends._open


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_what_checkpointing_computes_again_on_another_thread_follows_the_block(name, reentrant, monkeypatch):
    chosen = []
    select = backends.select
    monkeypatch.setattr(backends, "select", lambda request: chosen.append(select(request)) or chosen[-1])
    unit = dk.nn.LocalActivationUnit(3, (4,), normalize="softmax")
    query, rows = torch.randn(2, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    history = dk.Jagged(rows, torch.tensor([0, 2, 5]))
    with dk.use_backend(name):
        plain = torch.autograd.grad(unit(query, history).square().sum(), [query, *unit.parameters()])
        chosen.clear()
        pooled = checkpoint(unit, query, history, use_reentrant=reentrant)
        in_a_thread(lambda: pooled.square().sum().backward())
    assert chosen == [name, name]
    for ours, expected in zip([query.grad, *(each.grad for each in unit.parameters())], plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
