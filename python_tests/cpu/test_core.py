"""The compiled core's edge: what a description must hold, numbers that stand in C++ and in Python, and memory that
nobody wrote."""

import ctypes
import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from support.edges import EDGES

from din_kernels import _cpu
from din_kernels.backends.calls import LocalActivationCall, LocalActivationResult, MbaPenaltyCall, SparseUpdateCall
from din_kernels.backends.compiled import Description
from din_kernels.options import ACTIVATIONS, MAX_HIDDEN, NORMALIZATIONS, RULES
from din_kernels.verification import ACTIVATION_CASES, LAYOUTS, make_case, results

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def unit_call(**changes) -> LocalActivationCall:
    """A call of two users that the core serves, but for the changes."""
    fields = {
        "query_tables": [torch.ones(2, 3)],
        "query_ids": [],
        "history_tables": [torch.ones(5, 3)],
        "history_ids": [],
        "begin": torch.tensor([0, 2]),
        "length": torch.tensor([2, 3]),
        "row_index": None,
        "row_mask": None,
        "query_to_user": None,
        "pair_begin": None,
        "total_pairs": 0,
        "weights": [torch.ones(4, 12), torch.ones(1, 4)],
        "biases": [torch.ones(4), torch.ones(1)],
        "params": [torch.ones(1)],
        "eps": [],
        "dice_training": False,
        "sparse_grad": False,
        "query_padding": [],
        "history_padding": [],
        "features": "concat",
        "activation": "prelu",
        "normalize": "none",
        "scale": 1.0,
    }
    return LocalActivationCall(**fields | changes)


def run_unit(call: dict, described: Description) -> torch.Tensor:
    result = LocalActivationResult(torch.full((2, 3), torch.nan), torch.empty(0), torch.empty(0), torch.empty(2, 0))
    result = result._replace(logsumexp=result.logsumexp.double())
    _cpu.local_activation_forward(call, described.of(result), 1)
    return result.pooled


def test_a_feature_set_without_columns_is_refused(tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    flags = ["-std=c++17", "-O0", "-DDIN_KERNELS_ISA=baseline", f"-I{CSRC / 'include'}", f"-I{CSRC / 'cpu'}"]
    sources = [
        path for part in ("tests/features", "common/*", "local_activation/*") for path in CSRC.glob(f"cpu/{part}.cpp")
    ]
    subprocess.run([compiler, *flags, *sources, "-o", tmp_path / "features"], check=True)
    done = subprocess.run(tmp_path / "features", check=True, text=True, capture_output=True)
    assert done.stdout == "features must be a set whose columns the CPU kernels know, got number 3\n"


def test_a_description_made_of_the_named_tuple_is_served():
    described = Description()
    assert run_unit(described.of(unit_call()), described).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"begin": torch.tensor([0, 2], dtype=torch.int32)}, "begin must be of int64, got int32"),
        ({"row_mask": torch.ones(5)}, "row_mask must be of bool, got float32"),
        ({"query_tables": []}, "query_tables must hold 1 to 8 tables, got 0"),
        ({"history_tables": [torch.ones(5, 1)] * 9}, "history_tables must hold 1 to 8 tables, got 9"),
        ({"history_tables": [torch.ones(5)]}, "history_tables must have 2 dimensions, got 1"),
        ({"history_tables": [torch.ones(5, 4)]}, "the history must have the query's 3 columns, got 4"),
        ({"query_ids": [torch.zeros(2, dtype=torch.int64)] * 2}, "query_ids must hold one array per table or none"),
        ({"query_ids": [torch.zeros(2)]}, "query_ids must be one of int32, int64, got float32"),
        ({"query_tables": [torch.ones(2, 3, dtype=torch.int64)]}, "query_tables must be one of float32, .*got int64"),
        ({"weights": [torch.ones(1, 12)] * 5}, "weights must hold 1 to 4 layers, .*got 5"),
        ({"params": []}, "2 biases, 1 params .*got 2, 0 and 0"),
        ({"activation": "dice", "params": [torch.ones(4)] * 3}, "for Dice eps per hidden layer, got 2, 3 and 0"),
        ({"weights": [torch.ones(4, 12).double(), torch.ones(1, 4)]}, "weights must be of float32"),
        ({"activation": "gelu"}, "activation must be one of sigmoid, .*, got gelu"),
        ({"features": 3}, "features must be text, got int"),
    ],
)
def test_a_wrong_description_of_the_unit_is_refused_by_name(changes, message):
    described = Description()
    with pytest.raises(ValueError, match=message):
        run_unit(described.of(unit_call(**changes)), described)


@pytest.mark.parametrize("missing", LocalActivationCall._fields)
def test_what_a_description_lacks_is_named(missing):
    described = Description()
    call = described.of(unit_call())
    del call[missing]
    if missing in ("sparse_grad", "query_padding", "history_padding"):  # of no concern to kernels
        run_unit(call, described)
        return
    with pytest.raises(ValueError, match=f"the call must hold {missing}"):
        run_unit(call, described)


@pytest.mark.parametrize("value", [7, (1, "float32"), (1, 2, (3,)), (1, "float32", 3), [1, "float32", (3,)]])
def test_what_is_no_array_is_refused_by_name(value):
    described = Description()
    call = described.of(unit_call()) | {"length": value}
    with pytest.raises(ValueError, match="length must be"):
        run_unit(call, described)


def test_a_wrong_description_of_tables_is_refused_by_name():
    tensors = {"weight": torch.ones(4, 2), "ids": torch.tensor([1, 2]), "counts": torch.ones(4, dtype=torch.float16)}
    described, unique = Description(), torch.empty(2, dtype=torch.int64)
    call = described.of(MbaPenaltyCall(**tensors, coeff=1.0, padding_idx=-1, sparse=True))
    with pytest.raises(ValueError, match="counts must be one of int32, int64, float32, float64, got float16"):
        _cpu.mba_penalty_forward(
            call, {"unique": described.array(unique), "unique_count": described.array(unique[0])}, 1
        )
    step = SparseUpdateCall(
        [tensors["weight"]],
        [],
        [tensors["ids"]],
        [torch.ones(2, 2)],
        [None],
        [-1],
        *([0.1],) * 6,
        [False],
        [False],
        "adam",
    )
    with pytest.raises(ValueError, match="states must hold 2 entries for 1 tables, got 0"):
        _cpu.sparse_update(described.of(step), 1)
    with pytest.raises(ValueError, match="rule must be one of sgd, .*got adamw"):
        _cpu.sparse_update(described.of(step._replace(rule="adamw")), 1)


# --- numbers that stand in C++ and in Python --------------------------------------------------------------------------


def test_activations_take_as_many_parameters_in_cpp_as_in_python():
    in_python = {
        name: tuple(len(activation.given(batch_statistics)) for batch_statistics in (False, True))
        for name, activation in ACTIVATIONS.items()
    }
    assert _cpu.params_per_layer() == in_python


def test_rules_take_as_many_states_in_cpp_as_in_python():
    assert _cpu.states_per_table() == {rule: len(states) for rule, states in RULES.items()}


@pytest.mark.skipif(not CSRC.exists(), reason="needs the sources")
def test_the_unit_has_as_many_hidden_layers_in_cpp_as_in_python():
    header = (CSRC / "include" / "din_kernels" / "local_activation.h").read_text()
    assert int(re.search(r"kMaxHidden = (\d+)", header)[1]) == MAX_HIDDEN


# --- memory that nobody wrote -----------------------------------------------------------------------------------------


def nan_with_payload(dtype: torch.dtype) -> torch.Tensor:
    """A NaN whose exponent arithmetic leaves the range of a signed integer."""
    if dtype == torch.float64:
        return torch.tensor(0x7FF80000000007FF).view(torch.float64)
    return torch.tensor(0x7FC000FF, dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_a_nan_with_any_payload_stays_with_its_user(normalize, dtype):
    call = unit_call(activation="sigmoid", params=[], normalize=normalize)
    tables = [torch.ones(5, 3, dtype=dtype)]
    tables[0][3, 1] = nan_with_payload(dtype)
    call = call._replace(
        query_tables=[call.query_tables[0].to(dtype)],
        history_tables=tables,
        weights=[weight.to(dtype) for weight in call.weights],
        biases=[bias.to(dtype) for bias in call.biases],
    )
    described = Description()
    result = LocalActivationResult(
        torch.empty(2, 3, dtype=dtype),
        torch.empty(2, dtype=torch.float64),
        torch.empty(0, dtype=dtype),
        torch.empty(2, 0, dtype=dtype),
    )
    _cpu.local_activation_forward(described.of(call), described.of(result), 1)
    assert result.pooled[0].isfinite().all() and result.pooled[1].isnan().all()


@pytest.mark.skipif(not _cpu.scratch_is_poisoned(), reason="needs a core of `make test-cpu-sanitized`")
@pytest.mark.parametrize("activation", ACTIVATION_CASES)
def test_kernels_compute_with_no_memory_that_nobody_wrote(activation):
    """Scratch of such a build holds signalling NaNs, and arithmetic on one leaves its mark in the processor's flags."""
    invalid, libm = 1, ctypes.CDLL("libm.so.6")  # FE_INVALID of x86 and of 64-bit ARM
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # flags belong to a thread
    try:
        for edge, normalize, layout in itertools.product(EDGES, NORMALIZATIONS, LAYOUTS):
            case = make_case("concat", activation, normalize, layout, **EDGES[edge])
            libm.feclearexcept(invalid)
            results(case, "cpu", torch.float32)
            assert not libm.fetestexcept(invalid), (edge, normalize, layout)
    finally:
        torch.set_num_threads(before)
