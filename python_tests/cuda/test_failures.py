"""What the device or the runtime refuses becomes an exception that names the kernel and the limit, and the next call is
served. The emulated device refuses as a GPU would."""

import pytest
import torch
from support.cuda_backend import emulated_module

import din_kernels as dk
from din_kernels.backends import cuda
from din_kernels.ops.sparse_update import Hyper, Table, sparse_update
from din_kernels.verification import make_case, results

emulated = pytest.fixture(emulated_module)


def dice():
    x, alpha = torch.ones(3, 2, requires_grad=True), torch.zeros(2)
    dk.dice(x, alpha, training=True)[0].sum().backward()


def unit():
    results(make_case("outer", "sigmoid", "none", "packed", dim=4), "cuda", torch.float32)


def penalty():
    dk.mba_penalty(torch.ones(5, 4), torch.tensor([1, 2]), torch.ones(5), 0.1)


def update():
    ids, grads = torch.tensor([1, 2]), torch.ones(2, 4)
    sparse_update([Table(torch.ones(5, 4), [], ids, grads, Hyper(0.1, 0.1, 0.0, 0.0, 0.0, 0.0), None, 0)], "sgd")


# A call of each op, what it asks its workspace for, and its first kernel.
CALLS = {
    "local_activation": (unit, "local_activation_forward", "pack"),
    "dice": (dice, "dice", "dice_statistics"),
    "mba_penalty": (penalty, "mba_penalty", "clear"),
    "sparse_update": (update, "sparse_update", "clear"),
}


def call(op):
    with dk.use_backend("cuda"):
        CALLS[op][0]()


def without_memory(monkeypatch, of_node=lambda node: True):
    """Scratch memory cannot be had, where the autograd node that asks (None in forward) is such a one."""
    empty = torch.empty

    def full(size, *arguments, dtype=None, **options):
        if dtype == torch.uint8 and of_node(torch._C._current_autograd_node()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(size, *arguments, dtype=dtype, **options)

    monkeypatch.setattr(torch, "empty", full)


@pytest.mark.parametrize("op", CALLS)
def test_architecture_without_code_is_an_error_that_names_kernel_build_and_device(op, emulated):
    emulated.set_device(architecture=75)
    message = (
        f"kernel {CALLS[op][2]}: no kernel image is available for execution on the device; "
        "this build has code for 90, the device is sm_75"
    )
    with pytest.raises(RuntimeError, match=message):
        call(op)
    emulated.set_device()
    call(op)


@pytest.mark.parametrize("op", CALLS)
def test_memory_that_runs_out_is_an_error_that_names_kernel_and_size(op, emulated, monkeypatch):
    with monkeypatch.context() as patched:
        without_memory(patched)
        message = rf"kernel {CALLS[op][1]} needs a workspace of \d+ bytes: CUDA out of memory"
        with pytest.raises(torch.OutOfMemoryError, match=message):
            call(op)
    call(op)


def test_memory_that_runs_out_in_backward_is_an_error_that_names_kernel_and_size(emulated, monkeypatch):
    with monkeypatch.context() as patched:
        without_memory(patched, lambda node: node is not None)
        message = r"kernel local_activation_backward needs a workspace of \d+ bytes: CUDA out of memory"
        with pytest.raises(torch.OutOfMemoryError, match=message):
            unit()
    unit()


def test_chip_too_small_for_one_tile_is_an_error_that_names_kernel_and_limit(emulated):
    emulated.set_device(shared_per_block=8 * 1024)
    case = make_case("concat", "sigmoid", "none", "packed", dim=128, hidden=(80,), lengths=(3, 4))
    with pytest.raises(RuntimeError, match=r"kernel local_activation_forward needs \d+ bytes of shared memory.*8192"):
        results(case, "cuda", torch.float32)
    emulated.set_device()
    results(case, "cuda", torch.float32)


def test_launch_that_asks_for_too_much_shared_memory_is_an_error_that_names_kernel_and_limit(emulated):
    """Dice's tiles have one size, whatever the device."""
    emulated.set_device(shared_per_block=1024)
    with pytest.raises(RuntimeError, match=r"kernel dice_statistics needs \d+ bytes of shared memory.* limit is 1024"):
        call("dice")
    emulated.set_device()
    call("dice")


@pytest.mark.parametrize("op", CALLS)
def test_tensors_on_the_wrong_device_are_refused_with_where_they_must_be(op, emulated, monkeypatch):
    monkeypatch.setenv("DIN_KERNELS_CUDA_EMULATE", "0")
    monkeypatch.setattr(cuda, "unavailable", lambda: None)  # as on a machine with a GPU
    with pytest.raises(dk.BackendError, match="its tensors must be on a GPU, got cpu"):
        call(op)
