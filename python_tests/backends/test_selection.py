"""Claims about the choice of a backend, and that every public example runs."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import subprocess
import sys

import pytest
import torch

import din_kernels as dk
from din_kernels import backends, options
from din_kernels.backends import BackendError, Request


def example(**options):
    generator = torch.Generator().manual_seed(0)
    history = dk.Jagged(torch.randn(5, 3, generator=generator, requires_grad=True), torch.tensor([0, 2, 5]))
    weights = [torch.randn(4, 12, generator=generator), torch.randn(1, 4, generator=generator)]
    query = torch.randn(2, 3, generator=generator, requires_grad=True)
    return query, history, dk.local_activation(query, history, weights, [torch.zeros(4), torch.zeros(1)], **options)


@pytest.fixture
def served(monkeypatch):
    """Names of the backends that forward and backward kernels were called on."""
    seen, module = [], backends.module

    def recorded(name, op):
        found = module(name, op)
        if sys._getframe(1).f_code.co_name in ("_forward", "_backward"):
            seen.append((sys._getframe(1).f_code.co_name, name))
        return found

    monkeypatch.setattr(backends, "module", recorded)
    return seen


def run(script: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, text=True, capture_output=True, timeout=120
    )


# --- forcing ----------------------------------------------------------------------------------------------------------


def test_cpu_tensors_go_to_the_cpu_kernels(served):
    example()[2].sum().backward()
    assert served == [("_forward", "cpu"), ("_backward", "cpu")]


def test_forced_reference_calls_no_kernel(served):
    with dk.use_backend("reference"):
        example()[2].sum().backward()
    assert served == []


def test_backward_stays_with_the_forwards_backend_after_the_block(served):
    with dk.use_backend("cpu"):
        query, _, pooled = example()
    with dk.use_backend("reference"):
        pooled.sum().backward()
    assert served == [("_forward", "cpu"), ("_backward", "cpu")] and query.grad is not None
    served.clear()
    with dk.use_backend("reference"):
        _, _, pooled = example()
    pooled.sum().backward()
    assert served == []


def test_blocks_nest_and_end_with_an_error_too(served):
    with dk.use_backend("reference"):
        with dk.use_backend("cpu"):
            example()
        with pytest.raises(RuntimeError, match="stop"), dk.use_backend("cpu"):
            raise RuntimeError("stop")
        example()
    example()
    assert [name for _, name in served] == ["cpu", "cpu"]


def test_ops_that_a_block_does_not_name_are_chosen_as_without_it(served):
    with dk.use_backend("reference", ops=("dice",)):
        example()
    assert [name for _, name in served] == ["cpu"]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("cpu", {"dtype": torch.int8}, "dtype must be one of float32"),
        ("cpu", {"device": "cuda"}, "must be on the CPU, got cuda"),
        ("cuda", {}, "."),
        ("triton", {}, "."),
    ],
)
def test_a_forced_backend_that_cannot_serve_says_why_and_never_falls_back(name, options, reason):
    if name in ("cuda", "triton") and backends.unavailable(name) is None:
        pytest.skip(f"{name} serves here")
    given = {"device": "cpu", "dtype": torch.float32, "options": backends.TYPICAL_OPTIONS} | options
    request = Request("local_activation", **given)
    with (
        dk.use_backend(name),
        pytest.raises(BackendError, match=f"backend '{name}' cannot serve local_activation: .*{reason}"),
    ):
        backends.select(request)


def test_unknown_backends_and_ops_are_refused():
    with pytest.raises(ValueError, match="name must be one of 'cpu', 'cuda', 'triton', 'reference', got 'tpu'"):
        with dk.use_backend("tpu"):
            pass
    with pytest.raises(ValueError, match="ops must be among 'local_activation', .*, got 'softmax'"):
        with dk.use_backend("cpu", ops=("softmax",)):
            pass


def test_the_environment_forces_a_backend_that_a_block_overrules(monkeypatch, served):
    monkeypatch.setenv("DIN_KERNELS_BACKEND", "reference")
    example()
    assert served == []
    with dk.use_backend("cpu"):
        example()
    assert served == [("_forward", "cpu")]
    monkeypatch.setenv("DIN_KERNELS_BACKEND", "tpu")
    with pytest.raises(ValueError, match="DIN_KERNELS_BACKEND must be one of 'cpu', .*, got 'tpu'"):
        example()


def test_a_compiled_function_keeps_the_backend_of_its_trace(served):
    compiled = torch.compile(lambda: example()[2], backend="eager")
    with dk.use_backend("reference"):
        compiled()
    compiled()
    assert served == []


# --- what is there ----------------------------------------------------------------------------------------------------


def test_cpu_kernels_serve_every_option_that_is_fused():
    served = {
        (option, value): backend
        for op, option, value, backend in backends.capabilities("cpu")
        if op == "local_activation"
    }
    for option, values in (
        ("features", options.FEATURES),
        ("activation", options.ACTIVATIONS),
        ("normalize", options.NORMALIZATIONS),
        ("layout", options.LAYOUTS),
        ("query_to_user", ("True",)),
        ("gather", ("True",)),
        ("stats", ("padded",)),
        ("dice_training", ("True",)),
        ("dtype", ("float32", "float64", "bfloat16", "float16")),
    ):
        assert [served[option, value] for value in values] == ["cpu"] * len(values)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_option_has_a_row_and_a_backend(device):
    rows = backends.capabilities(device)
    assert {op for op, *_ in rows} == set(backends.OPS)
    assert {backend for *_, backend in rows} <= set(backends.NAMES)
    assert len({row[:3] for row in rows}) == len(rows)


def test_every_backend_runs_or_has_a_reason():
    available = backends.available()
    assert list(available) == list(backends.NAMES) and available["reference"] is None
    assert all(reason is None or len(reason) > 10 for reason in available.values())


@pytest.mark.parametrize("hidden", [["triton"], ["rich", "matplotlib", "tqdm"]])
def test_the_package_imports_and_runs_without(hidden):
    done = run(f"""
import sys
sys.modules |= dict.fromkeys({hidden!r})  # an import of them fails
import torch, din_kernels as dk
unit = dk.nn.LocalActivationUnit(4)
print(unit(torch.randn(2, 4), torch.randn(2, 3, 4)).shape)
print(dk.backends.available()["triton"])
""")
    assert done.returncode == 0, done.stderr
    shape, reason = done.stdout.strip().splitlines()
    assert shape == "torch.Size([2, 4])"
    assert hidden != ["triton"] or reason != "None"


def test_without_the_compiled_core_the_reference_serves_with_one_warning():
    done = run("""
import sys, warnings
sys.modules["din_kernels._cpu"] = None
import torch, din_kernels as dk
unit = dk.nn.LocalActivationUnit(4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        unit(torch.randn(2, 4), torch.randn(2, 3, 4))
print(len(caught), caught[0].message)
try:
    with dk.use_backend("cpu"):
        unit(torch.randn(2, 4), torch.randn(2, 3, 4))
except dk.BackendError as error:
    print(error)
""")
    assert done.returncode == 0, done.stderr
    warned, refused = done.stdout.strip().splitlines()
    assert warned.startswith("1 the reference serves instead of backend 'cpu': the compiled core")
    assert refused.startswith("backend 'cpu' cannot serve local_activation: the compiled core")


# --- examples ---------------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    names = [each.name for each in pkgutil.walk_packages(dk.__path__, "din_kernels.")]
    return [name for name in names if not name.rpartition(".")[2].startswith("_") and "triton" not in name]


def examples(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    names = {"torch": torch, "din_kernels": dk} | vars(dk.optim) | vars(dk) | vars(module)
    unit = dk.nn.LocalActivationUnit(4, hidden=(3,))
    names |= {"unit": unit, "query": torch.randn(1, 4), "history": torch.randn(1, 2, 4)}
    found = doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs=names)
    return [each for each in found if each.examples]


@pytest.mark.parametrize("name", modules())
def test_every_example_runs_as_it_is_written(name):
    for each in examples(name):
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        report = []
        assert runner.run(each, out=report.append).failed == 0, "".join(report)


@pytest.mark.parametrize(
    "name",
    [
        "Jagged",
        "MBA",
        "MBACounts",
        "use_backend",
        "local_activation",
        "mba_penalty",
        "nn.LocalActivationUnit",
        "nn.Dice",
    ],
)
def test_public_names_have_an_example(name):
    value = dk
    for part in name.split("."):
        value = getattr(value, part)
    assert ">>>" in value.__doc__
