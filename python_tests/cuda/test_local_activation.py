"""The unit on backend `cuda`: a representative part of the correctness suite, and what only this backend has.

The whole suite on the emulation: make test-cuda-emulated.
"""

import contextlib
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import bounds
from support.cuda_backend import KINDS, device_of, emulated_module
from support.edges import EDGES, WIDE_EDGES
from support.large_values import silu_is_torchs

import din_kernels as dk
from din_kernels.backends.cuda import local_activation as tensors_to_pointers
from din_kernels.ops.local_activation import FEATURES, feature_width
from din_kernels.verification import ACTIVATION_CASES, LAYOUTS, compared, deviations, make_case, results

# Each feature set, activation, normalization and layout once per dtype; `holds` runs forward and backward.
CASES = [
    ("concat", "sigmoid", "softmax", "packed"),
    ("product", "relu", "none", "left padded"),
    ("concat", "prelu", "softmax", "query_to_user"),
    ("product", "tanh", "softmax", "masked"),
    ("outer", "silu", "none", "query_to_user"),
    ("concat", "identity", "none", "query_to_user"),
    ("concat", "dice", "softmax", "packed"),
    ("product", "dice in training", "none", "packed"),
    ("concat", "dice in training", "softmax", "query_to_user"),
    ("outer", "sigmoid", "softmax", "packed"),
    ("outer", "prelu", "none", "masked"),
    ("outer", "dice in training", "softmax", "query_to_user"),
]
# 256 behaviours on average: the first layer is folded. Histories of one, of whole and of partial tiles, over several
# blocks.
LONG = {"lengths": (0, 700, 1, 128, 0, 900, 63), "dim": 12, "hidden": (9, 5)}


@pytest.fixture(params=KINDS)
def device(request, monkeypatch):
    return device_of(request.param, monkeypatch)


emulated = pytest.fixture(emulated_module)


def holds(case, dtype, device):
    bounds.holds(deviations(case, "cuda", dtype, device))


def test_every_layout_and_activation_is_among_the_cases():
    assert {case[0] for case in CASES} == set(FEATURES)
    assert {case[1] for case in CASES} == set(ACTIVATION_CASES)
    assert {case[3] for case in CASES} == set(LAYOUTS) - {"right padded"}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_outputs_and_all_gradients_equal_the_reference(case, device):
    holds(make_case(*case), torch.float32, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case[1] in ("sigmoid", "tanh", "silu", "dice")], ids="-".join
)
def test_half_precision_equals_the_reference(case, dtype, device):
    holds(make_case(*case), dtype, device)


def test_silu_of_large_and_of_infinite_values_is_torchs(device):
    silu_is_torchs("cuda", torch.float32, device)


def test_outer_features_in_half_precision_do_not_add_up_one_rounding_over_a_history(device):
    """A_i comes in two parts: rounded to bf16 once, its error is the same for all behaviours, where the reference's are
    independent. `error <= bound` failed by 1.14 so."""
    holds(make_case("outer", "prelu", "none", "packed"), torch.bfloat16, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("features", ["concat", "outer"])
def test_score_gradients_of_a_softmax_add_up_to_zero_in_half_precision(features, dtype, emulated):
    """The last bias shifts all scores alike. Here every block holds whole histories, of one, two and three tiles."""
    emulated.set_device(multiprocessors=1)
    lengths = (192, 128, 64, 192, 64, 128)  # of 4 blocks with 3 tiles each
    case = make_case(features, "sigmoid", "softmax", "packed", dim=8, hidden=(8,), lengths=lengths)
    gradients = results(case, "cuda", dtype)
    assert gradients["grad biases[1]"].abs() < 1e-6 * gradients["grad weights[1]"].abs().max()


@pytest.mark.parametrize("edge", EDGES | WIDE_EDGES)
def test_ragged_edges_equal_the_reference(edge, device):
    for normalize in ("none", "softmax"):
        holds(make_case("concat", "prelu", normalize, "packed", **(EDGES | WIDE_EDGES)[edge]), torch.float32, device)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 70), max_size=8),
    dim=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 40), max_size=3),
    features=st.sampled_from(FEATURES),
    # Smooth in z: at a kink the sign of a z near 0 is chance, and with it a whole pair's gradient.
    activation=st.sampled_from(["sigmoid", "tanh", "identity", "dice"]),
    normalize=st.sampled_from(["none", "softmax"]),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_shape_equals_the_reference(device, lengths, dim, hidden, **options):
    case = make_case(**options, dim=dim, hidden=tuple(hidden), lengths=tuple(lengths))
    holds(case, torch.float32, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        ("concat", "sigmoid", "softmax", "packed"),
        ("product", "dice in training", "none", "packed"),
        ("concat", "prelu", "none", "query_to_user"),
    ],
    ids="-".join,
)
def test_long_histories_equal_the_reference(case, dtype, device):
    holds(make_case(*case, **LONG), dtype, device)


@pytest.mark.parametrize(
    "case",
    [("concat", "dice in training", "softmax", "packed"), ("outer", "prelu", "softmax", "query_to_user")],
    ids="-".join,
)
def test_chunks_of_candidates_give_what_all_of_them_at_once_give(case, device, monkeypatch):
    case = make_case(*case, **LONG)
    for chunk_bytes in (1, 6000):  # one candidate at a time, a few
        monkeypatch.setattr(tensors_to_pointers, "CHUNK_BYTES", chunk_bytes)
        holds(case, torch.float32, device)


@pytest.mark.parametrize("features", ["concat", "outer"])
@pytest.mark.parametrize("lengths", [(3, 0, 12, 70), (0, 300, 260, 400)], ids=["short", "long"])
@pytest.mark.parametrize("layout", ["right", "left", "mask"])
def test_padded_statistics_equal_the_reference(layout, lengths, features, device):
    """Padding counts in Dice's statistics, and through them gets gradients, but no weight."""

    def found(backend, dtype):
        dim, hidden, generator = 6, (7, 5), torch.Generator().manual_seed(3)

        def leaf(*shape, scale=1.0):
            drawn = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).float()
            return drawn.to(device, dtype).requires_grad_()

        widths = [feature_width(dim, features), *hidden, 1]
        length, longest = torch.tensor(lengths, device=device), max(lengths) + 4
        leaves = {"query": leaf(4, dim), "history": leaf(4, longest, dim)}
        weights = [leaf(b, a, scale=a**-0.5) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        biases, alphas = [leaf(width) for width in widths[1:]], [leaf(width) for width in hidden]
        for name, group in (("weights", weights), ("biases", biases), ("alpha", alphas)):
            leaves |= {f"{name}[{layer}]": each for layer, each in enumerate(group)}
        where = {"lengths": length, "padding_side": layout}
        if layout == "mask":
            where = {"mask": (torch.arange(longest, device=device) * 7 % longest) < length[:, None]}
        with dk.use_backend(backend):
            pooled, pair_weights = dk.local_activation(
                leaves["query"],
                dk.Padded(leaves["history"], **where),
                weights,
                biases,
                features=features,
                activation="dice",
                activation_params=[{"alpha": alpha, "training": True} for alpha in alphas],
                normalize="softmax",
                stats="padded",
                return_weights=True,
            )
        grads = torch.autograd.grad(pooled.square().sum() + pair_weights.sin().sum(), list(leaves.values()))
        outputs = {"pooled": pooled, "weights": pair_weights}
        outputs |= {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return {name: value.detach().cpu().double() for name, value in outputs.items()}

    exact, own = found("reference", torch.float64), found("reference", torch.float32)
    wrong = [each for each in compared(found("cuda", torch.float32), own, exact, torch.float32) if not each.ratio <= 1]
    assert not wrong, wrong


@pytest.mark.parametrize("features", ["concat", "outer"])
def test_tf32_stays_within_its_rounding_and_is_used_only_where_torch_allows_it(features, device):
    case = make_case(features, "sigmoid", "softmax", "packed", dim=64 if features == "concat" else 24, hidden=(24,))
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


@pytest.mark.parametrize("features", ["concat", "outer"])
def test_nan_in_one_history_stays_with_its_candidates(features, device):
    case = make_case(features, "sigmoid", "softmax", "packed", dim=8, hidden=(8,), lengths=(70, 3, 60))
    broken = case.history.clone()
    broken[71] = torch.nan  # of user 1
    clean = results(case, "cuda", torch.float32, device)
    found = results(dataclasses.replace(case, history=broken), "cuda", torch.float32, device)
    assert found["pooled"][1].isnan().all()
    for name, others in (("pooled", [0, 2]), ("grad query", [0, 2]), ("grad history", [*range(70), *range(73, 133)])):
        assert torch.equal(found[name][others], clean[name][others]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_at_odd_addresses_give_what_aligned_ones_do(dtype, device):
    """Aligned, two or four elements are read at once."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(rows, 8, generator=generator).to(device, dtype) for rows in (2, 70, 2)]

    def shifted(tensor):
        buffer = tensor.new_empty(tensor.numel() + 1)
        return buffer[1:].view(tensor.shape).copy_(tensor)

    def outputs(query, rows, grad):
        history = dk.Jagged(rows.requires_grad_(), torch.tensor([0, 3, 70], device=device))
        weights = [torch.full(shape, 0.1, device=device, dtype=dtype) for shape in ((8, 32), (1, 8))]
        biases = [torch.zeros(width, device=device, dtype=dtype) for width in (8, 1)]
        with dk.use_backend("cuda"):
            pooled = dk.local_activation(query.requires_grad_(), history, weights, biases, normalize="softmax")
        return [pooled, *torch.autograd.grad(pooled, [query, rows], grad)]

    expected, found = outputs(*tensors), outputs(*map(shifted, tensors))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("features", ["concat", "outer"])
def test_deterministic_results_do_not_depend_on_the_order_of_blocks(features, emulated):
    case = make_case(features, "dice", "softmax", "query_to_user", dim=8, hidden=(8, 4))
    found = []
    for reverse in (False, True):
        emulated.set_device(reverse_blocks=reverse)
        torch.use_deterministic_algorithms(True)
        try:
            found.append(results(case, "cuda", torch.float32))
        finally:
            torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("features", ["concat", "outer"])
@pytest.mark.parametrize("limit", [163 * 1024, 99 * 1024, 40 * 1024])
def test_smaller_chips_get_smaller_tiles_and_the_same_values(limit, features, emulated):
    emulated.set_device(multiprocessors=2, shared_per_block=limit)
    if features == "outer":
        return holds(make_case(features, "sigmoid", "softmax", "packed", dim=30, hidden=(40,)), torch.float32, "cpu")
    holds(make_case("concat", "sigmoid", "softmax", "packed", dim=64, hidden=(40,)), torch.float32, "cpu")


@pytest.mark.parametrize("features", ["concat", "outer"])
def test_rows_that_leave_room_for_fewer_candidates_are_folded_too(features, emulated):
    emulated.set_device(multiprocessors=2, shared_per_block=8 * 1024)
    holds(
        make_case(features, "sigmoid", "none", "packed", dim=70, hidden=(5,), lengths=(300, 250)), torch.float32, "cpu"
    )


def test_the_workspace_is_planned_for_the_device_of_the_tensors(emulated, monkeypatch):
    @contextlib.contextmanager
    def larger_device(tensor):  # than the one that is current outside
        emulated.set_device(multiprocessors=9)
        yield 0
        emulated.set_device(multiprocessors=1)

    emulated.set_device(multiprocessors=1)
    monkeypatch.setattr(tensors_to_pointers, "stream_of", larger_device)
    holds(make_case("concat", "dice in training", "softmax", "packed", lengths=(500, 400)), torch.float32, "cpu")


# --- what is not there ------------------------------------------------------------------------------------------------


def test_what_has_no_kernel_is_refused_with_the_reason(emulated):
    with pytest.raises(dk.BackendError, match="dtype must be float32, bfloat16 or float16, got torch.float64"):
        results(make_case("concat", "sigmoid", "none", "packed", dim=4), "cuda", torch.float64)


def test_cuda_is_never_the_automatic_choice():
    served_by = {backend for *_, backend in dk.backends.capabilities("cuda")}
    assert "cuda" not in served_by
    assert all(dk.backends.module("cuda", op) is not None for op in dk.backends.OPS)


def test_info_says_what_a_forced_cuda_serves_and_refuses(emulated):
    with dk.use_backend("cuda"):
        served = {row[:3]: row[3] for row in dk.backends.capabilities("cpu")}
    refused = {key[1:]: reason for key, reason in served.items() if reason != "cuda"}
    assert refused.keys() == {("dice_training", "some"), ("dtype", "float64")}
    assert all(reason.startswith("none: backend 'cuda' cannot serve") for reason in refused.values())
    assert "use_backend('cuda') alone chooses it" in dk.backends.remark("cuda")
