"""DIN_KERNELS_ISA: every ISA gives the reference's values; one that is unknown or missing is an error that says so."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from din_kernels import _build_info, _cpu

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

AGREES_WITH_REFERENCE = """
import torch
import din_kernels as dk
from din_kernels import _cpu

torch.manual_seed(0)
print(_cpu.isa())
lengths = torch.tensor([3, 0, 17, 1, 64])
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
    values = torch.randn(int(lengths.sum()), 13, dtype=dtype, requires_grad=True)
    query = torch.randn(5, 13, dtype=dtype, requires_grad=True)
    unit = dk.nn.LocalActivationUnit(13, hidden=(9, 5), dtype=dtype)
    grads = {}
    for backend in ("cpu", "reference"):
        with dk.use_backend(backend):
            pooled = unit(query, dk.Jagged.from_lengths(values, lengths))
        grads[backend] = [pooled, *torch.autograd.grad(pooled.square().sum(), [query, values, *unit.parameters()])]
    for ours, theirs in zip(grads["cpu"], grads["reference"]):
        assert (ours - theirs).abs().max() <= tolerance * (1 + theirs.abs().max())
"""


def run(script: str, isa: str) -> subprocess.CompletedProcess:
    environment = {"DIN_KERNELS_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", script], env=os.environ | environment, text=True, capture_output=True)


@pytest.mark.parametrize("isa", _build_info.ISAS)
def test_forced_isa_runs_and_agrees_with_the_reference(isa):
    if isa not in _cpu.supported_isas():
        pytest.skip(f"this processor lacks {isa}")
    done = run(AGREES_WITH_REFERENCE, isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


# A representative part of the unit's suite. The gradient of the one slope of width 1 is a sum of 163 terms that cancel;
# 4e-7 is what it may be off on every instruction set, with fused products or without (avx2 leaves 2.7e-7).
HOLDS_THE_BOUNDS = """
import torch
from support.bounds import holds
from support.edges import EDGES
from din_kernels.options import FEATURES, NORMALIZATIONS
from din_kernels.verification import ACTIVATION_CASES, LAYOUTS, deviations, make_case

cases = [
    make_case("concat", "prelu", normalize, layout, **edge)
    for normalize in NORMALIZATIONS for layout in LAYOUTS for edge in EDGES.values()
]
cases += [
    make_case(features, activation, normalize, "masked")
    for features in FEATURES for activation in ACTIVATION_CASES for normalize in NORMALIZATIONS
]
for case in cases:
    for dtype in (torch.float32, torch.float64):
        holds(deviations(case, "cpu", dtype, "cpu"))
for dtype in (torch.bfloat16, torch.float16):
    holds(deviations(make_case("concat", "dice in training", "softmax", "query_to_user"), "cpu", dtype, "cpu"))
of_width_1 = deviations(make_case("concat", "prelu", "none", "right padded", **EDGES["width 1"]), "cpu", torch.float32)
assert {each.tensor: each.error for each in of_width_1}["grad slope[0]"] < 4e-7
print("all hold")
"""


@pytest.mark.parametrize("isa", _build_info.ISAS)
def test_a_representative_part_of_the_units_suite_holds_on_every_isa(isa):
    if isa not in _cpu.supported_isas():
        pytest.skip(f"this processor lacks {isa}")
    done = run(HOLDS_THE_BOUNDS, isa)
    assert done.returncode == 0 and done.stdout == "all hold\n", done.stderr


def test_widest_supported_isa_is_the_default():
    done = run("from din_kernels import _cpu; print(_cpu.isa())", "")
    assert done.stdout.strip() == _cpu.supported_isas()[-1]


def test_unknown_isa_is_an_error_that_lists_the_known():
    done = run("from din_kernels import _cpu; _cpu.isa()", "avx1024")
    assert done.returncode != 0
    assert "DIN_KERNELS_ISA must be one of baseline, avx2, avx512, got avx1024" in done.stderr


def test_forced_isa_that_cannot_run_never_falls_back_silently():
    script = """
import torch, din_kernels
history = din_kernels.Jagged(torch.randn(5, 4), torch.tensor([0, 2, 5]))
din_kernels.local_activation(torch.randn(2, 4), history, [torch.randn(1, 16)], [torch.randn(1)])
"""
    done = run(script, "avx1024")
    assert done.returncode != 0
    assert "DIN_KERNELS_ISA" in done.stderr


@pytest.mark.skipif(COMPILER is None or not CSRC.exists(), reason="needs a C++ compiler and the sources")
@pytest.mark.parametrize(
    ("defines", "lacking"),
    [
        (["DIN_KERNELS_HAVE_AVX2", "DIN_KERNELS_HAVE_AVX512", "__builtin_cpu_supports(name)=0"], "this processor"),
        ([], "this build"),
    ],
)
def test_isa_that_machine_or_build_lacks_is_an_error_that_says_which(tmp_path, defines, lacking):
    if lacking == "this processor" and "avx512" not in _build_info.ISAS:
        pytest.skip("only x86-64 has more than one ISA")
    main = tmp_path / "main.cpp"
    main.write_text("""
#include <cstdio>
#include <stdexcept>
#include "common/isa.h"
int main() {
    try {
        std::puts(isa_name(din_kernels::cpu::active_isa()));
    } catch (const std::runtime_error& error) {
        std::puts(error.what());
    }
}
""")
    program = tmp_path / "program"
    sources = [main, CSRC / "cpu" / "common" / "isa.cpp"]
    subprocess.run(
        [COMPILER, "-std=c++17", f"-I{CSRC / 'cpu'}", *(f"-D{define}" for define in defines), *sources, "-o", program],
        check=True,
    )
    said = {
        isa: subprocess.run([program], env={"DIN_KERNELS_ISA": isa}, text=True, capture_output=True).stdout.strip()
        for isa in ("", "baseline", "avx512")
    }
    assert said[""] == said["baseline"] == "baseline"
    assert said["avx512"] == f"DIN_KERNELS_ISA must be one of baseline here, got avx512, which {lacking} lacks"


@pytest.mark.skipif(not shutil.which("objdump"), reason="no objdump")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86's prefetch instructions")
def test_kernels_that_read_rows_by_id_still_prefetch_after_the_compiler():
    # GCC drops calls of functions that do nothing but prefetch; results and types say nothing about it.
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", _cpu.__file__]
    with_prefetch, function = set(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listing:
        for line in listing.stdout:
            if line.endswith(">:\n"):
                function = line
            elif "\tprefetch" in line:
                with_prefetch.add(function)
    for isa in _build_info.ISAS:
        for call in ("UpdateCall<float>", "PenaltyCall<float>", "cpu::Call<float>"):
            assert any(f"cpu::{isa}::" in function and call in function for function in with_prefetch), (isa, call)
