"""Claims about the Triton kernels, run by Triton's interpreter on CPU tensors.

The interpreter is chosen when Triton is imported, so test_triton.py runs this file in a process of its own:
`TRITON_INTERPRET=1 pytest python_tests/triton/triton_interpreted.py`, with `-m "not full"` for a representative set.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import bounds
from support.large_values import silu_is_torchs

import din_kernels as dk
from din_kernels.backends.triton import INTERPRETED, chips
from din_kernels.backends.triton.local_activation import inputs, outer, places, run_backward, run_forward, weights
from din_kernels.backends.triton.local_activation import plan as plans
from din_kernels.gather import Gather
from din_kernels.ops.local_activation import FEATURES, NORMALIZATIONS
from din_kernels.ops.sparse_update import RULES, Hyper, Table, sparse_update
from din_kernels.verification import ACTIVATION_CASES, FLOOR, LAYOUTS, deviations, make_case

pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 in the environment"),
    pytest.mark.usefixtures("uninitialized_memory_is_nan"),
]

full = pytest.mark.full

# (lengths, hidden): folded tiles of 64 with whole and partial ones; grouped tiles; parts of a long history; no and 3
# hidden layers. An average of 24 behaviours folds.
SHAPES = {
    "folded": {"lengths": (0, 1, 64, 65, 0, 33), "dim": 19, "hidden": (24, 9)},
    "grouped": {"lengths": (2, 0, 3, 1, 9, 4, 17, 0, 8, 5), "dim": 36, "hidden": (36,)},
    "split": {"lengths": (700,), "dim": 5, "hidden": (80, 40)},
    "no hidden layer": {"lengths": (2, 0, 40), "dim": 16, "hidden": ()},
    "3 hidden layers": {"lengths": (2, 0, 3, 1), "dim": 3, "hidden": (5, 6, 7)},
    "all empty": {"lengths": (0, 0), "dim": 3, "hidden": (4,)},
    "no users": {"lengths": (), "dim": 3, "hidden": (4,)},
}


@pytest.fixture(autouse=True)
def short_histories_are_grouped_in_fp32_too(monkeypatch):
    """So that the bound of fp32 holds for this path as well, which only 16-bit rows take."""
    monkeypatch.setitem(chips.stored("local_activation")["default"]["32 bit"], "fold_from", 24)


def holds(case, dtype):
    bounds.holds(deviations(case, "triton", dtype))


# A representative set: every value of every option, and every shape, at least once per dtype.
SAMPLE = [
    (FEATURES[at % 3], activation, NORMALIZATIONS[(at + again) % 2], LAYOUTS[at % 5], list(SHAPES)[(at // 2) % 7])
    for again in range(2)
    for at, activation in enumerate(ACTIVATION_CASES, again * len(ACTIVATION_CASES))
]


@pytest.mark.parametrize(("features", "activation", "normalize", "layout", "shape"), SAMPLE)
def test_outputs_and_all_gradients_equal_the_reference(features, activation, normalize, layout, shape):
    holds(make_case(features, activation, normalize, layout, **SHAPES[shape]), torch.float32)


@full
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATION_CASES)
@pytest.mark.parametrize("features", FEATURES)
def test_every_combination_equals_the_reference(features, activation, normalize, layout, shape):
    holds(make_case(features, activation, normalize, layout, **SHAPES[shape]), torch.float32)


def test_silu_of_large_and_of_infinite_values_is_torchs():
    silu_is_torchs("triton", torch.float32, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("features", "activation", "normalize", "shape"),
    [
        ("concat", "sigmoid", "none", "folded"),
        ("product", "prelu", "softmax", "grouped"),
        ("concat", "dice in training", "none", "grouped"),
        ("outer", "tanh", "softmax", "3 hidden layers"),
        ("product", "silu", "none", "grouped"),
    ],
)
def test_half_precision_equals_the_reference(features, activation, normalize, shape, dtype):
    holds(make_case(features, activation, normalize, "query_to_user", **SHAPES[shape]), dtype)


@full
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "prelu", "tanh", "silu", "dice"])
@pytest.mark.parametrize("features", FEATURES)
def test_every_combination_in_half_precision(features, activation, normalize, shape, dtype):
    holds(make_case(features, activation, normalize, "packed", **SHAPES[shape]), dtype)


def unit_results(backend, dtype, gather=False, stats="valid", lengths=(3, 0, 12, 70), weight_dtype=None):
    """Pooled and all gradients of a unit with Dice in training, and its running statistics, by name."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    unit = dk.nn.LocalActivationUnit(20, (24, 9), "dice", stats=stats)
    for parameter in unit.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    unit = unit.to(weight_dtype or dtype)
    length = torch.tensor(lengths)
    if gather:
        leaves = [leaf(30, 12), leaf(7, 8)]
        ids = [torch.randint(0, len(table), (int(length.sum()),), generator=generator) for table in leaves]
        offsets = torch.nn.functional.pad(length.cumsum(0), (1, 0))
        query = Gather([each[: len(lengths)] for each in ids], leaves, sparse=False)
        history = Gather(ids, leaves, offsets, sparse=False)
    elif stats == "padded":
        leaves = [leaf(len(lengths), 20), leaf(len(lengths), max(lengths) + 2, 20)]
        query, history = leaves[0], dk.Padded(leaves[1], length)
    else:
        leaves = [leaf(len(lengths), 20), leaf(sum(lengths), 20)]
        query, history = leaves[0], dk.Jagged.from_lengths(leaves[1], length)
    with dk.use_backend(backend):
        pooled = unit(query, history)
    towards = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(pooled.dtype)
    names = [f"grad leaf {at}" for at in range(len(leaves))] + [f"grad {name}" for name, _ in unit.named_parameters()]
    grads = torch.autograd.grad(pooled, [*leaves, *unit.parameters()], towards)
    found = {"pooled": pooled, **dict(zip(names, grads, strict=True)), **dict(unit.named_buffers())}
    return {name: value.detach().double() for name, value in found.items()}


@pytest.mark.parametrize("options", [{"gather": True}, {"stats": "padded"}, {"weight_dtype": torch.float32}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_by_id_padded_statistics_and_wide_weights_equal_the_reference(dtype, options):
    ours, own = (unit_results(backend, dtype, **options) for backend in ("triton", "reference"))
    exact = unit_results("reference", torch.float64, **options | {"weight_dtype": None})
    largest = max(value.abs().max() for name, value in exact.items() if name.startswith("grad"))
    for name, right in exact.items():
        if dtype == torch.bfloat16:
            continue  # the float64 run holds other numbers; the kernel's rounding is bounded above
        bound = 2 * (own[name] - right).abs().max() + FLOOR[dtype] * max(largest, right.abs().max())
        assert (ours[name] - right).abs().max() <= bound, name
    if dtype == torch.bfloat16:
        for name, right in own.items():
            torch.testing.assert_close(ours[name], right, rtol=0.1, atol=0.05 * float(largest))


@pytest.mark.parametrize("features", ["concat", "outer"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_candidates_of_one_user_add_their_gradients_in_order_or_atomically(deterministic, features, monkeypatch):
    torch.use_deterministic_algorithms(deterministic)
    monkeypatch.setattr(outer, "CHUNK_BYTES", 4 * 24 * 19 * 4)  # chunks of outer that split a user
    holds(make_case(features, "sigmoid", "none", "query_to_user", **SHAPES["folded"]), torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("lengths", [(3, 0, 8, 2), (3, 0, 70, 42)])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_bad_values_of_one_user_touch_only_that_users_candidates(normalize, lengths, bad):
    offsets = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    generator = torch.Generator().manual_seed(0)
    query, values = torch.randn(4, 6, generator=generator), torch.randn(sum(lengths), 6, generator=generator)
    weights = [torch.randn(7, 24, generator=generator), torch.randn(1, 7, generator=generator)]
    biases, results = [torch.zeros(7), torch.zeros(1)], []
    for spoilt in (False, True):
        if spoilt:
            values[offsets[2] + 1] = bad
            query[1] = float("nan")  # its history is empty
        leaves = [query.clone().requires_grad_(), values.clone().requires_grad_()]
        with dk.use_backend("triton"):
            pooled = dk.local_activation(leaves[0], dk.Jagged(leaves[1], offsets), weights, biases, normalize=normalize)
        results.append([pooled, *torch.autograd.grad(pooled.sum(), leaves)])
    for clean, spoilt in zip(results[0][:2], results[1][:2], strict=True):
        assert torch.equal(clean[[0, 1, 3]], spoilt[[0, 1, 3]])
        assert not spoilt[2].isfinite().all()
    others = torch.ones(len(values), dtype=torch.bool)
    others[offsets[2] : offsets[3]] = False
    assert torch.equal(results[0][2][others], results[1][2][others])


def test_rows_beyond_2_to_31_elements_are_found():
    dim, tail = 64, 30
    rows = 2**31 // dim + tail
    try:  # zero pages: only what is touched takes memory
        values = torch.from_numpy(np.zeros((rows, dim), np.float32))
    except MemoryError:
        pytest.skip("address space for 8.6 GB is needed")
    generator = torch.Generator().manual_seed(0)
    values[-tail:] = torch.randn(tail, dim, generator=generator)
    query, unit = torch.randn(1, dim, generator=generator), dk.nn.LocalActivationUnit(dim, (7,))
    far = dk.Jagged(values, torch.tensor([0, rows - tail, rows]))
    with torch.no_grad(), dk.use_backend("triton"):
        pooled = unit(query, far, query_to_user=torch.tensor([1]))
        near = unit(query, dk.Jagged(values[-tail:].clone(), torch.tensor([0, tail])))
    torch.testing.assert_close(pooled, near, rtol=1e-6, atol=1e-6)


def test_short_histories_fold_in_fp32_and_are_grouped_in_half_precision(monkeypatch):
    monkeypatch.undo()
    seen = []
    for each in (run_forward, run_backward):
        monkeypatch.setattr(each, "plan", lambda *a, **k: seen.append(plans.plan(*a, **k)) or seen[-1])
    for dtype in (torch.float32, torch.bfloat16):
        holds(make_case("concat", "sigmoid", "softmax", "packed", **SHAPES["grouped"]), dtype)
    assert [each.tile.folded for each in seen] == [True] * 4 + [False] * 4


def test_outer_is_the_same_in_chunks_of_candidates(monkeypatch):
    case = make_case("outer", "sigmoid", "none", "packed", **SHAPES["folded"])
    monkeypatch.setattr(outer, "CHUNK_BYTES", 2 * 24 * 19 * 4)
    holds(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ["folded", "grouped", "split", "no hidden layer"])
def test_gradients_are_the_same_in_chunks_of_places(monkeypatch, shape, layout, dtype):
    if layout == "query_to_user":
        torch.use_deterministic_algorithms(False)  # else candidates that share a history are not taken in chunks
    monkeypatch.setattr(run_backward, "places_that_fit", lambda *_: 29)
    holds(make_case("concat", "sigmoid", "softmax", layout, **SHAPES[shape]), dtype)


@pytest.mark.parametrize("size", [29, 10_000])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_more_pairs_than_even_candidates_would_have_get_their_gradients(monkeypatch, normalize, size):
    """Without returned weights the host does not know their number: here it is twice that of even candidates."""
    torch.use_deterministic_algorithms(False)  # else each kernel goes down its tiles itself
    monkeypatch.setattr(run_backward, "places_that_fit", lambda *_: size)
    rooms, chunks_of_places = [], run_backward._Backward._chunks_of_places
    monkeypatch.setattr(
        run_backward._Backward,
        "_chunks_of_places",
        lambda self: (rooms.append(room) or room for room in chunks_of_places(self)),
    )
    generator = torch.Generator().manual_seed(0)
    unit = dk.nn.LocalActivationUnit(19, (24, 9), normalize=normalize)
    leaves = [torch.randn(rows, 19, generator=generator).requires_grad_() for rows in (5, 100)]
    history = dk.Jagged(leaves[1], torch.tensor([0, 3, 80, 80, 100]))
    towards, found = torch.randn(5, 19, generator=generator), {}
    for backend in ("triton", "reference"):
        with dk.use_backend(backend):
            pooled = unit(leaves[0], history, query_to_user=torch.tensor([1, 0, 1, 1, 2]))
        found[backend] = torch.autograd.grad(pooled, [*leaves, *unit.parameters()], towards)
    for ours, right in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
    # No chunk leaves more than its room holds; the last, which goes past what was expected, has none.
    assert rooms[-1].layers is None and len(rooms) > 1
    assert all(room.chunk[3] - room.chunk[2] <= len(room.layers) for room in rooms[:-1])


def test_float64_is_refused_with_a_reason():
    case = make_case("concat", "sigmoid", "none", "packed")
    with pytest.raises(dk.BackendError, match="dtype must be float32, bfloat16 or float16, got torch.float64"):
        list(deviations(case, "triton", torch.float64))


def test_tiles_shrink_to_a_chips_shared_memory_and_a_unit_too_wide_for_the_least_is_refused(monkeypatch):
    sizes, seen = SHAPES["grouped"] | {"dim": 64, "hidden": (80, 40)}, []
    case = make_case("concat", "sigmoid", "none", "packed", **sizes)
    for each in (run_forward, run_backward):
        monkeypatch.setattr(each, "plan", lambda *a, **k: seen.append(plans.plan(*a, **k)) or seen[-1])
    for limit, folded in ((232_448, False), (60_000, True)):
        monkeypatch.setattr(chips, "shared_memory", lambda device, limit=limit: limit)
        holds(case, torch.float32)
        assert [each.tile.folded for each in seen[-4:]] == [folded] * 4
    monkeypatch.setattr(chips, "shared_memory", lambda device: 50_000)
    with pytest.raises(dk.BackendError, match=r"D = 64 and H = \(80, 40\) take up to .* the chip has 50,000"):
        list(deviations(case, "triton", torch.float32))


def test_without_gradients_a_unit_whose_backward_alone_is_too_wide_is_served(monkeypatch):
    monkeypatch.setattr(chips, "shared_memory", lambda device: 40_000)
    unit, rows = dk.nn.LocalActivationUnit(16, (80, 80)).bfloat16(), torch.randn(4, 16, dtype=torch.bfloat16)
    history = dk.Jagged(rows, torch.tensor([0, 1, 4]))
    with dk.use_backend("triton"):
        with pytest.raises(dk.BackendError, match="shared memory"):
            unit(rows[:2], history)
        with torch.no_grad():
            assert unit(rows[:2], history).isfinite().all()


def test_what_follows_from_sizes_alone_is_made_once_and_not_in_every_call():
    made = [inputs.unit_of, plans.tile_of, places.room_places, weights.weight_places]
    counts = []
    for lengths in ((3, 1), (2, 2, 9), (1, 4)):
        holds(make_case("concat", "sigmoid", "none", "packed", lengths=lengths, dim=7, hidden=(5,)), torch.float32)
        counts.append([each.cache_info().misses for each in made])
    assert counts[1] == counts[2] == counts[0]


def test_matrix_precision_is_that_of_torch():
    before = torch.get_float32_matmul_precision()
    found = []
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        found.append(chips.dot_precision(torch.float32))
    torch.set_float32_matmul_precision(before)
    assert found == [chips.EXACT, "tf32", "tf32"]


# --- the sparse ops and Dice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_one_step_equals_the_reference_with_long_runs_of_equal_ids(rule):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 19, generator=generator)
    # Runs longer than a program's block, and one that fills several.
    ids = (torch.rand(61, generator=generator) ** 4 * 40).to(torch.int32)
    states = [torch.rand(40, 19, generator=generator) if shape == "VD" else torch.rand(40) for shape in RULES[rule]]
    grads, counts = torch.randn(61, 19, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    for dtype, maximize, padding in ((torch.float32, False, 0), (torch.bfloat16, True, None)):
        found = []
        for backend in ("triton", "reference"):
            hyper = Hyper(0.1, 0.1, 0.9, 0.99, 1e-8, 0.3, maximize, decoupled=maximize)
            start = [each.clone() for each in states]
            table = Table(weight.to(dtype, copy=True), start, ids, grads.to(dtype), hyper, counts, padding)
            with dk.use_backend(backend):
                sparse_update([table], rule)
            found.append([table.weight, *table.states])
        for ours, theirs in zip(*found, strict=True):
            tolerance = {"rtol": 1e-5, "atol": 1e-5} if ours.dtype == torch.float32 else {"rtol": 8e-3, "atol": 8e-3}
            torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("run", [8 * 32, 8 * 33, 8 * 64 + 3, 8 * 70])
def test_a_run_of_one_id_over_more_than_32_blocks_is_summed_whole(run):
    generator = torch.Generator().manual_seed(run)
    ids = torch.cat([torch.tensor([0, 1, 1]), torch.full((run,), 2), torch.tensor([3, 3, 4])])
    ids = ids[torch.randperm(len(ids), generator=generator)]
    # Whole numbers, whose sums are exact: one block that is left out or added twice shows.
    grads = torch.randint(-9, 9, (len(ids), 5), generator=generator).float()
    expected = -torch.zeros(6, 5).index_add(0, ids, grads)
    table = Table(torch.zeros(6, 5), [], ids, grads, Hyper(1.0, 1.0))
    with dk.use_backend("triton"):
        sparse_update([table], "sgd")
    assert torch.equal(table.weight, expected)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_penalty_and_gradient_equal_the_reference(dtype, padding_idx, sparse):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 19, generator=generator).to(dtype).requires_grad_()
    counts = torch.randint(0, 5, (40,), generator=generator)
    for ids in (
        torch.randint(0, 40, (70,), generator=generator),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([3]),
    ):
        found = []
        for backend in ("triton", "reference"):
            with dk.use_backend(backend):
                penalty = dk.mba_penalty(weight, ids, counts, 0.3, padding_idx, sparse=sparse)
            assert penalty.dtype == torch.float32
            found.append((penalty.detach(), torch.autograd.grad(penalty, weight)[0].to_dense()))
        for ours, theirs in zip(*found, strict=True):
            rounding = torch.finfo(ours.dtype).eps
            torch.testing.assert_close(ours, theirs, rtol=8 * rounding, atol=8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dice_equals_the_reference(dtype, training):
    cases = [(300, 19, False, True), (150, 3, True, False), (7, 83, True, True), (0, 3, False, False)]
    # One channel, odd widths, whole tiles and a partial one, and more channels than a program has lanes.
    cases += [(9000, 1, True, False), (3001, 33, False, False), (700, 80, True, True), (9, 9001, True, True)]
    for rows, channels, masked, affine in cases:
        generator = torch.Generator().manual_seed(rows)
        x = (torch.randn(rows, channels, generator=generator) + 0.5).to(dtype)
        alpha, mean, weight, bias = torch.randn(4, channels, generator=generator)
        options = {"mean": mean, "var": torch.rand(channels, generator=generator) + 0.1, "training": training}
        options["mask"] = torch.rand(rows, generator=generator) < 0.6 if masked else None
        found = []
        for backend, wide in (("triton", dtype), ("reference", dtype), ("reference", torch.float64)):
            at_least = torch.promote_types(wide, torch.float32)
            leaves = {"x": x.to(wide), "alpha": alpha.to(at_least)}
            leaves |= {"weight": weight.to(at_least), "bias": bias.to(at_least)} if affine else {}
            leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
            with dk.use_backend(backend):
                y, used, var, count = dk.dice(**leaves, **options)
            towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(wide)
            grads = torch.autograd.grad(y, list(leaves.values()), towards)
            named = dict(zip((f"grad {name}" for name in leaves), grads, strict=True))
            found.append({"y": y.detach(), "mean": used, "var": var, "count": count} | named)
        ours, own, exact = found
        largest = max((value.abs().max().item() for name, value in exact.items() if "grad" in name and rows), default=0)
        for name, right in exact.items():
            if right.numel():
                bound = 2 * (own[name] - right).abs().max() + FLOOR[dtype] * max(largest, right.abs().max().item())
                assert (ours[name] - right).abs().max() <= bound, (rows, channels, masked, affine, name)


def test_dice_of_no_valid_row_is_defined():
    with dk.use_backend("triton"):
        y, mean, var, count = dk.dice(
            torch.ones(3, 5), torch.zeros(5), training=True, mask=torch.zeros(3, dtype=torch.bool)
        )
    assert (y == 0).all() and (mean == 0).all() and (var == 1).all() and count == 0


def test_dice_keeps_a_nan_to_its_channel_and_what_is_masked_out_of_everything():
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 300, 7, generator=generator)
    x[5, 2], x[9] = torch.nan, torch.inf
    mask = torch.arange(300) != 9
    x.requires_grad_(), (alpha := torch.zeros(7, requires_grad=True))
    with dk.use_backend("triton"):
        y, mean, var, count = dk.dice(x, alpha, training=True, mask=mask)
    grads = torch.autograd.grad(y, (x, alpha), grad)
    assert count == 299 and (y[9] == 0).all() and (grads[0][9] == 0).all()
    for by_channel in (y[mask].T, grads[0][mask].T, mean, var, grads[1]):
        nan = by_channel.isnan() if by_channel.dim() == 1 else by_channel.isnan().all(1)
        assert nan.tolist() == [channel == 2 for channel in range(7)]
        assert by_channel[~nan].isfinite().all()


def test_dice_loses_no_variance_of_a_channel_far_from_zero():
    x = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 10_000.0])
    with dk.use_backend("triton"):
        y, mean, var, _ = dk.dice(x, torch.zeros(2), training=True)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(var.double(), exact.var(0, unbiased=False), rtol=1e-5, atol=0)
    gate = torch.sigmoid((exact - exact.mean(0)) / exact.var(0, unbiased=False).sqrt())
    torch.testing.assert_close(y.double() / exact, gate, rtol=1e-3, atol=1e-3)
