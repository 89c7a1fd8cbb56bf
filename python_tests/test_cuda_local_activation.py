"""The unit on backend `cuda`: a representative part of the correctness suite, and what only this backend has.

The whole suite on the emulation: make test-cuda-emulated.
"""

import dataclasses

import pytest
import torch
from cuda_backend import KINDS, device_of
from hypothesis import given, settings
from hypothesis import strategies as st

import din_kernels as dk
from din_kernels.backends import cuda
from din_kernels.verification import ACTIVATION_CASES, LAYOUTS, deviations, make_case, results

# Each feature set, activation, normalization and layout once per dtype; `holds` runs forward and backward.
CASES = [
    ("concat", "sigmoid", "softmax", "packed"), ("product", "relu", "none", "left padded"),
    ("concat", "prelu", "softmax", "query_to_user"), ("product", "tanh", "softmax", "masked"),
    ("concat", "identity", "none", "query_to_user"), ("concat", "dice", "softmax", "packed"),
    ("product", "dice in training", "none", "packed"), ("concat", "dice in training", "softmax", "query_to_user"),
]  # fmt: skip
EDGES = {
    "no users": {"lengths": ()},
    "all histories empty": {"lengths": (0, 0, 0)},
    "one behaviour": {"lengths": (1, 1)},
    "histories over several blocks": {"lengths": (0, 700, 0, 3, 900), "dim": 8, "hidden": (8,)},
    "more empty histories than a window": {"lengths": (1, *(0,) * 200, 2), "dim": 8, "hidden": (8,)},
    "many short histories": {"lengths": (1, 2) * 70, "dim": 4, "hidden": (5,)},
    "D = 1": {"dim": 1},
    "D = 36": {"dim": 36, "hidden": (36,)},
    "D = 128": {"dim": 128, "hidden": (80, 40), "lengths": (70, 0, 3)},
    "D beyond four warps' tiles": {"dim": 700, "hidden": (5,), "lengths": (3, 40)},
    "no hidden layer": {"hidden": ()},
    "width 1": {"hidden": (1, 1)},
    "width 200": {"hidden": (200,), "lengths": (9, 4)},
    "3 hidden layers": {"hidden": (9, 20, 5)},
}


@pytest.fixture(params=KINDS)
def device(request, monkeypatch):
    return device_of(request.param, monkeypatch)


@pytest.fixture
def emulated(monkeypatch):
    """The emulated module, whose device can be set."""
    device_of("emulated", monkeypatch)
    yield cuda.compiled()
    cuda.compiled().set_device()


def holds(case, dtype, device):
    wrong = [each for each in deviations(case, "cuda", dtype, device) if not each.ratio <= 1]
    assert not wrong, "\n".join(f"{each.tensor}: error {each.error:.3g}, bound {each.bound:.3g}" for each in wrong)


def test_every_layout_and_activation_is_among_the_cases():
    assert {case[1] for case in CASES} == set(ACTIVATION_CASES)
    assert {case[3] for case in CASES} == set(LAYOUTS) - {"right padded"}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_outputs_and_all_gradients_equal_the_reference(case, device):
    holds(make_case(*case), torch.float32, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case[1] in ("sigmoid", "tanh", "dice")], ids="-".join)
def test_half_precision_equals_the_reference(case, dtype, device):
    holds(make_case(*case), dtype, device)


@pytest.mark.parametrize("edge", EDGES)
def test_ragged_edges_equal_the_reference(edge, device):
    for normalize in ("none", "softmax"):
        holds(make_case("concat", "prelu", normalize, "packed", **EDGES[edge]), torch.float32, device)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 70), max_size=8),
    dim=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 40), max_size=3),
    features=st.sampled_from(["concat", "product"]),
    # Smooth in z: at a kink the sign of a z near 0 is chance, and with it a whole pair's gradient.
    activation=st.sampled_from(["sigmoid", "tanh", "identity", "dice"]),
    normalize=st.sampled_from(["none", "softmax"]),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_shape_equals_the_reference(device, lengths, dim, hidden, **options):
    case = make_case(**options, dim=dim, hidden=tuple(hidden), lengths=tuple(lengths))
    holds(case, torch.float32, device)


def test_tf32_stays_within_its_rounding_and_is_used_only_where_torch_allows_it(device):
    case = make_case("concat", "sigmoid", "softmax", "packed", dim=64, hidden=(24,))
    exact = results(case, "reference", torch.float64, "cpu")
    errors = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            found = results(case, "cuda", torch.float32, device)
        finally:
            torch.set_float32_matmul_precision("highest")
        errors[precision] = max(
            ((found[name] - value).abs().max() / value.abs().max()).item()
            for name, value in exact.items()
            if name != "grad biases[1]"  # sums to 0 under softmax
        )
    # tf32 keeps 11 bits of every factor: 2^-11 per product, a few of them in a row.
    assert errors["highest"] < 2e-5 < errors["high"] < 8 * 2**-11


def test_rows_by_id_from_several_tables_equal_the_copied_rows(device):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def ids(rows, count, dtype):
        return torch.randint(0, rows, (count,), generator=generator, dtype=dtype).to(device)

    for widths in ((16, 8), (5, 3)):  # copied 16 bytes at a time, and by element
        tables = [normal(50, widths[0]).to(device).requires_grad_(), normal(9, widths[1]).to(device).requires_grad_()]
        query = dk.Gather([ids(50, 4, torch.int64), ids(9, 4, torch.int32)], tables)
        offsets = torch.tensor([0, 5, 5, 80, 90], device=device)
        history = dk.Gather([ids(50, 90, torch.int32), ids(9, 90, torch.int64)], tables, offsets)
        weights = [normal(10, 4 * sum(widths)).to(device), normal(1, 10).to(device)]
        biases = [normal(10).to(device), normal(1).to(device)]
        found = []
        for backend in ("cuda", "reference"):
            with dk.use_backend(backend):
                pooled = dk.local_activation(query, history, weights, biases)
            grads = torch.autograd.grad(pooled.square().sum(), tables)
            found.append([pooled.detach(), *(grad.to_dense() for grad in grads)])
        for ours, expected in zip(*found, strict=True):
            assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_nan_in_one_history_stays_with_its_candidates(device):
    case = make_case("concat", "sigmoid", "softmax", "packed", dim=8, hidden=(8,), lengths=(70, 3, 60))
    broken = case.history.clone()
    broken[71] = torch.nan  # of user 1
    clean = results(case, "cuda", torch.float32, device)
    found = results(dataclasses.replace(case, history=broken), "cuda", torch.float32, device)
    assert found["pooled"][1].isnan().all()
    for name, others in (("pooled", [0, 2]), ("grad query", [0, 2]), ("grad history", [*range(70), *range(73, 133)])):
        assert torch.equal(found[name][others], clean[name][others]), name


def test_deterministic_results_do_not_depend_on_the_order_of_blocks(emulated):
    case = make_case("concat", "dice", "softmax", "query_to_user", dim=8, hidden=(8, 4))
    found = []
    for reverse in (False, True):
        emulated.set_device(reverse_blocks=reverse)
        torch.use_deterministic_algorithms(True)
        try:
            found.append(results(case, "cuda", torch.float32))
        finally:
            torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("limit", [163 * 1024, 99 * 1024, 40 * 1024])
def test_smaller_chips_get_smaller_tiles_and_the_same_values(limit, emulated):
    emulated.set_device(multiprocessors=2, shared_per_block=limit)
    holds(make_case("concat", "sigmoid", "softmax", "packed", dim=64, hidden=(40,)), torch.float32, "cpu")


def test_chip_too_small_for_one_tile_is_an_error_that_names_kernel_and_limit(emulated):
    emulated.set_device(shared_per_block=8 * 1024)
    case = make_case("concat", "sigmoid", "none", "packed", dim=128, hidden=(80,), lengths=(3, 4))
    with pytest.raises(RuntimeError, match=r"kernel local_activation_forward needs \d+ bytes of shared memory.*8192"):
        results(case, "cuda", torch.float32)
    emulated.set_device()
    results(case, "cuda", torch.float32)  # and the next call is served


# --- launch arithmetic ------------------------------------------------------------------------------------------------


def plan(emulated, dim, hidden, dtype, backward, shared_per_block, queries=1024, precision="highest"):
    table, typed = (0, queries, dim, 0, "int64"), (0, dtype, 0)
    layers = [{"width": width, "weight": typed, "bias": typed, "params": [], "eps": 0.0} for width in (*hidden, 1)]
    call = {"dtype": dtype, "precision": precision, "queries": queries, "users": queries, "rows_count": queries,
            "capacity": queries, "dim": dim, "query": [table], "rows": [table], "layers": layers, "features": "concat",
            "activation": "sigmoid", "normalize": "softmax", "scale": 1.0}  # fmt: skip
    return emulated.local_activation_plan(call, backward, 132, shared_per_block)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plans_stay_within_the_chip_for_every_shape(dtype, backward, emulated):
    for limit in (227 * 1024, 163 * 1024, 99 * 1024):
        for dim in (1, 3, 8, 19, 36, 64, 100, 128, 256):
            for hidden in ((), (1,), (36,), (80, 40), (200,), (64, 32, 16)):
                found = plan(emulated, dim, hidden, dtype, backward, limit)
                assert found["shared_bytes"] <= limit
                assert found["threads"] == 2 * found["rows"] and found["rows"] in (16, 32, 64)
                assert 132 <= found["blocks"] <= 4 * 132
                assert found["workspace_bytes"] > 0


def test_largest_calls_keep_their_workspace_in_64_bits(emulated):
    found = plan(emulated, 256, (200, 80), "float32", True, 227 * 1024, queries=2**31 - 1)
    assert found["workspace_bytes"] > (2**31 - 1) * 4 * (200 + 256)


def test_width_beyond_every_tile_is_refused_with_the_kernel_and_the_limit(emulated):
    with pytest.raises(RuntimeError, match="kernel local_activation_forward needs .* the limit is 232448"):
        plan(emulated, 8192, (8,), "float32", False, 227 * 1024)


def test_house_shape_keeps_weight_gradients_in_shared_memory_on_hopper(emulated):
    assert plan(emulated, 128, (80, 40), "bfloat16", True, 227 * 1024)["gradient_in_shared"]


# --- what is not there ------------------------------------------------------------------------------------------------


def test_what_has_no_kernel_is_refused_with_the_reason(emulated):
    case = make_case("outer", "sigmoid", "none", "packed", dim=4)
    with pytest.raises(dk.BackendError, match="features must be one of .*, got 'outer'"):
        results(case, "cuda", torch.float32)
    with pytest.raises(dk.BackendError, match="dtype must be float32, bfloat16 or float16, got torch.float64"):
        results(make_case("concat", "sigmoid", "none", "packed", dim=4), "cuda", torch.float64)


def test_cuda_is_never_the_automatic_choice():
    served_by = {backend for *_, backend in dk.backends.capabilities("cuda")}
    assert "cuda" not in served_by
    assert all(dk.backends.module("cuda", op) is not None for op in dk.backends.OPS)
