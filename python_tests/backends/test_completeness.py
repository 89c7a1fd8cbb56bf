"""Claims that every op and every option of din_kernels/options.py is there in every layer."""

from __future__ import annotations

import pytest
from support.completeness import missing_of_op, missing_of_option

import din_kernels as dk
from din_kernels import backends, options
from din_kernels.commands.check import KERNELS
from din_kernels.verification import ACTIVATION_CASES

VALUES = {
    "activation": options.ACTIVATIONS,
    "features": options.FEATURES,
    "normalize": options.NORMALIZATIONS,
    "rule": options.RULES,
}
CASES = [(kind, value) for kind, values in VALUES.items() for value in values]


@pytest.mark.parametrize("op", options.OPS)
def test_an_op_is_there_in_every_layer(op):
    assert not list(missing_of_op(op))


@pytest.mark.parametrize(("kind", "value"), CASES)
def test_an_option_is_there_in_every_layer(kind, value):
    assert not list(missing_of_option(kind, value))


def test_what_an_unknown_op_and_an_unknown_activation_lack_is_named():
    lacks = list(missing_of_op("focus"))
    for part in (
        "no schema of focus in din_kernels/ops/schemas.py",
        "no FocusCall in din_kernels/backends/calls.py",
        "no din_kernels/backends/triton/focus.py",
        "no csrc/cuda/focus",
        "not named in docs/architecture.md",
    ):
        assert f"focus: {part}" in lacks
    assert [line.partition(": not in ")[2] for line in missing_of_option("activation", "gelu")] == [
        "csrc/include",
        "din_kernels/backends/triton",
        "din_kernels/backends/reference",
        "csrc/cpu",
        "csrc/cuda",
        "din_kernels/nn",
        "python_tests/support/oracle.py",
    ]


@pytest.mark.parametrize("activation", options.ACTIVATIONS)
def test_an_activation_has_a_module_a_case_of_verification_and_a_row(activation):
    assert len(dk.nn.LocalActivationUnit(3, (4,), activation).activations) == 1
    assert activation in ACTIVATION_CASES
    assert (f"{activation} in training" in ACTIVATION_CASES) == bool(options.ACTIVATIONS[activation].statistics)
    assert ("local_activation", "activation", activation) in [row[:3] for row in backends.capabilities()]


@pytest.mark.parametrize("kind", ["features", "activation", "normalize"])
@pytest.mark.parametrize("described", [dk.local_activation, dk.nn.LocalActivationUnit])
def test_every_value_of_an_option_is_described_to_users(described, kind):
    assert [value for value in VALUES[kind] if f'"{value}"' not in described.__doc__] == []


def test_every_backend_with_kernels_is_checked_by_check_on_a_device():
    assert set(KERNELS) == set(options.BACKENDS) - {"reference"}
    assert {backends.device_of(name) for name in KERNELS} <= set(options.DEVICES)
    assert {name for served in options.DEVICES.values() for name in served} <= set(options.BACKENDS)
