"""Claims about launches that bind their arguments once: what reaches a compiled kernel is what Triton hands over.

No GPU is needed: kernels are compiled for sm_90, and a driver takes down what would be launched.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from din_kernels.backends.triton import launch as launches  # noqa: E402
from din_kernels.backends.triton.launch import launch  # noqa: E402

pytestmark = pytest.mark.skipif(knobs.runtime.interpret, reason="the interpreter compiles no kernel")


class Rows(NamedTuple):
    """Arguments in a named tuple, one of them in a tuple of its own."""

    tables: tuple
    counts: torch.Tensor | None
    scale: float


class Other(NamedTuple):
    """As Rows, by another name."""

    tables: tuple
    counts: torch.Tensor | None
    scale: float


class Step(NamedTuple):
    """A constant."""

    rule: str
    flag: bool


OFFSET = tl.constexpr(3)
SCALE = tl.constexpr(0.5)


@triton.jit(do_not_specialize=["entries"])
def kernel(rows, out, entries, dim, STEP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(rows.tables[0] + at * dim, mask=at < entries, other=0.0).to(tl.float32) * rows.scale
    if rows.counts is not None:
        x += tl.load(rows.counts + at, mask=at < entries, other=0).to(tl.float32)
    if STEP.flag:
        x = x + OFFSET
    tl.store(out + at, x, mask=at < entries)


class Driver:
    """A driver of two devices without a GPU that takes launches down."""

    def __init__(self):
        self.device, self.launched, self.loaded = 0, [], 0
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448}, load_binary=self.load
        )

    def load(self, *_):
        self.loaded += 1
        return f"module {self.loaded}", f"function {self.loaded}", 32, 0, 1024

    def launcher_cls(self, src, metadata):
        return lambda *arguments: self.launched.append(arguments)

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return 70 + device


@pytest.fixture
def fake(monkeypatch):
    """The driver; nothing is compiled yet."""
    made = Driver()
    monkeypatch.setattr(driver, "_active", made)
    kernel.device_caches.clear()
    monkeypatch.setattr(launches, "_kinds", {})
    yield made
    kernel.device_caches.clear()


@pytest.fixture
def bound(monkeypatch):
    """Counts the launches that Triton has bound itself."""
    seen = []

    def run(self, *args, **options):
        seen.append(self)
        return original(self, *args, **options)

    original = JITFunction.run
    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(launches, "_run", run)
    return seen


MEMORY = torch.zeros(1024)


def rows_of(table=MEMORY[:64], counts=MEMORY[128:192], kind=Rows, scale=0.5):
    return kind((table,), counts, scale)


BASE = {"rows": rows_of(), "out": MEMORY[256:512], "entries": 64, "dim": 2, "STEP": Step("sgd", True), "BLOCK": 16}
OPTIONS = {"num_warps": 2}

# What differs from BASE, and whether Triton compiles another kernel for it.
OTHERS = {
    "the same": ({}, False),
    "another address": ({"out": MEMORY[512:]}, False),
    "an address that is no multiple of 16": ({"out": MEMORY[257:]}, True),
    "such an address in a tuple": ({"rows": rows_of(MEMORY[1:65])}, True),
    "another dtype": ({"out": MEMORY[256:].to(torch.bfloat16)}, True),
    "another dtype in a tuple": ({"rows": rows_of(counts=torch.zeros(64, dtype=torch.int64))}, True),
    "nothing in a tuple": ({"rows": rows_of(counts=None)}, True),
    "a longer tuple": ({"rows": Rows((MEMORY, MEMORY), MEMORY, 0.5)}, True),
    "another float": ({"rows": rows_of(scale=1.0)}, False),
    "a number that is 1": ({"dim": 1}, True),
    "a number that is a multiple of 16": ({"dim": 32}, True),
    "a number of 64 bits": ({"dim": 2**40 + 2}, True),
    "an unsigned number of 64 bits": ({"dim": 2**63 + 2}, True),
    "a bool for a number": ({"dim": True}, True),
    "1, where numbers are not looked at": ({"entries": 1}, False),
    "a multiple of 16, where numbers are not looked at": ({"entries": 160}, False),
    "64 bits, where numbers are not looked at": ({"entries": 2**40}, True),
    "another constant": ({"BLOCK": 32}, True),
    "another constant in a tuple": ({"STEP": Step("sgd", False)}, True),
    "1 for True in a constant, which Triton takes for the same": ({"STEP": Step("sgd", 1)}, False),
}


def parts(changed):
    """args and constants of a launch."""
    given = BASE | changed
    return tuple(given[name] for name in ("rows", "out", "entries", "dim")), {n: given[n] for n in ("STEP", "BLOCK")}


def by_triton(fake, changed, options=OPTIONS, grid=(4,)):
    """What reaches the compiled kernel from Triton's own path."""
    args, constants = parts(changed)
    kernel[grid](*args, **constants, **options)
    return fake.launched.pop()


def by_launch(fake, changed, options=OPTIONS, grid=(4,)):
    """What reaches the compiled kernel from `launch`."""
    args, constants = parts(changed)
    launch(kernel, grid, args, constants, options)
    return fake.launched.pop()


def assert_handed_over(ours, expected):
    """The same launch, with arguments that are the same objects and equal constants; what hooks are told is not."""
    assert len(ours) == len(expected) == 9 + len(kernel.params)
    assert ours[:6] == expected[:6] and ours[6] is None  # x, y, z, stream, function, metadata; then for hooks
    for one, other in zip(ours[7:], expected[7:], strict=True):
        assert one is other or (isinstance(one, (int, Step)) and one == other)


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_handed_over_is_what_triton_hands_over(what, fake, bound):
    changed, differs = OTHERS[what]
    by_launch(fake, {})
    by_launch(fake, changed)
    bound.clear()
    ours, base = by_launch(fake, changed), by_launch(fake, {})
    assert bound == []
    assert_handed_over(ours, by_triton(fake, changed))
    assert_handed_over(base, by_triton(fake, {}))
    assert (ours[4] != base[4]) == differs


def test_true_is_not_the_number_1(fake):
    for dim in (1, True):
        by_launch(fake, {"dim": dim})
    for dim in (1, True):
        assert_handed_over(by_launch(fake, {"dim": dim}), by_triton(fake, {"dim": dim}))


def test_kernels_of_other_options_devices_and_tuples_are_kept_apart(fake, bound):
    ours = {}
    for name, options, device in (("base", OPTIONS, 0), ("warps", {"num_warps": 4}, 0), ("device", OPTIONS, 1)):
        fake.device = device
        by_launch(fake, {}, options)
        bound.clear()
        ours[name] = by_launch(fake, {}, options)
        assert bound == [] and ours[name][3] == 70 + device
        assert_handed_over(ours[name], by_triton(fake, {}, options))
    assert len({each[4] for each in ours.values()}) == 3
    fake.device = 0
    bound.clear()
    by_launch(fake, {"rows": rows_of(kind=Other)})
    assert len(bound) == 1  # no launch had a tuple of this class


def test_the_grid_is_filled_up_with_ones(fake):
    by_launch(fake, {})
    for grid in ((5,), (5, 6), (5, 6, 7)):
        assert by_launch(fake, {}, grid=grid)[:3] == (*grid, 1, 1)[:3] == by_triton(fake, {}, grid=grid)[:3]


def kept() -> int:
    """How many kinds of launches are kept."""
    return sum(map(len, launches._kinds.values()))


def test_numbers_that_are_not_looked_at_take_no_room(fake, bound):
    for entries in range(1, 50):
        by_launch(fake, {"entries": entries})
    assert kept() == len(bound) == 1


def test_hooks_are_called_by_triton_itself(fake, bound):
    by_launch(fake, {})
    seen = []
    with mock.patch.object(kernel, "pre_run_hooks", [lambda *a, **k: seen.append("run")]):
        by_launch(fake, {})
    knobs.runtime.launch_enter_hook.add(hook := lambda metadata: seen.append("enter"))
    try:
        handed = by_launch(fake, {})
        handed[7](handed[6])
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert seen == ["run", "enter"] and len(bound) == 3
    by_launch(fake, {})
    assert len(bound) == 3


@pytest.mark.parametrize("name", ["_KNOWN", "_run"])
def test_another_version_and_a_replaced_run_are_left_to_triton(name, fake, bound, monkeypatch):
    by_launch(fake, {})
    monkeypatch.setattr(launches, name, None)
    by_launch(fake, {})
    assert len(bound) == 2


def test_a_debug_build_is_left_to_triton(fake, bound, monkeypatch):
    by_launch(fake, {})
    monkeypatch.setattr(knobs.runtime, "debug", True)
    by_launch(fake, {})
    assert len(bound) == 2


def test_a_global_that_changed_is_refused_as_by_triton(fake, monkeypatch):
    by_launch(fake, {})
    by_launch(fake, {})
    monkeypatch.setitem(globals(), "OFFSET", tl.constexpr(4))
    with pytest.raises(RuntimeError, match="OFFSET has changed"):
        by_launch(fake, {})


def test_arguments_of_other_classes_are_left_to_triton(fake, bound):
    for _ in range(2):
        by_launch(fake, {"rows": rows_of(scale=SCALE)})
    assert len(bound) == 2 and not kept()


def test_the_kinds_that_are_kept_are_the_last_ones_used(fake, bound, monkeypatch):
    monkeypatch.setattr(launches, "_MOST", 2)
    for dim in (1, 2, 1, 16):
        by_launch(fake, {"dim": dim})
    assert kept() == 2
    bound.clear()
    by_launch(fake, {"dim": 1})
    assert bound == []
    by_launch(fake, {"dim": 2})
    assert len(bound) == 1 and kept() == 2
