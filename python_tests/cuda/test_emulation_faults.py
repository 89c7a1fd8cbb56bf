"""The emulation of CUDA sees what hardware would punish, or silently get wrong: planted faults, and the same kernels
without them."""

import subprocess

import pytest
from support.cuda_emulation_programs import compiled

# What the message must name besides the kernel, block and thread.
FAULTS = {
    "shared_out_of_bounds": "shared array is accessed out of bounds: elements 64 .. 65 of 64",
    "shared_array_beyond_the_launch": "ends beyond the shared memory of the launch",
    "global_out_of_bounds": "global memory is accessed out of bounds: elements -1 .. 0 of 256",
    "misaligned_global_vector": "global memory access of 8 bytes is not aligned",
    "misaligned_shared_vector": "shared memory access of 8 bytes is not aligned",
    "misaligned_ldmatrix_row": "is not aligned to 16 bytes",
    "barrier_not_reached_by_all": "thread 5: ended without the barrier",
    "threads_at_different_barriers": "others are at that of line",
    "read_while_another_thread_writes": "no barrier lies between",
    "written_while_another_thread_reads": "no barrier lies between",
    "written_by_two_threads": "is written by two threads: no barrier lies between",
    "lanes_exchange_without_syncwarp": "no barrier lies between",
    "syncwarp_between_warps": "no barrier lies between",
    "copy_of_another_thread_without_barrier": "no barrier lies between",
    "copy_into_what_others_still_read": "no barrier lies between",
    "read_before_the_copy_was_waited_for": "is read before its asynchronous copy was waited for",
    "waited_for_the_wrong_group": "is read before its asynchronous copy was waited for",
    "uninitialized_shared_read": "thread 7: shared memory at byte 28 is read uninitialized",
    "read_of_the_last_blocks_shared_memory": "block (1, 0), thread 0: shared memory at byte 0 is read uninitialized",
    "warp_operation_without_all_lanes": "__shfl_xor_sync at line",
}
LIMITS = {
    "too_many_threads": "kernel kernel needs 2048 threads per block, the limit is 1024",
    "too_much_shared_memory": "kernel kernel needs 233472 bytes of shared memory per block, the limit is 232448",
    "too_many_blocks": "kernel kernel needs 65536 blocks in y, the limit is 65535",
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    program = compiled("faults", tmp_path_factory.mktemp("faults"))

    def run(*arguments: str) -> str:
        return subprocess.run([program, *arguments], check=True, text=True, capture_output=True).stdout.strip()

    return run


def test_every_planted_fault_is_listed_here(faults):
    assert faults("list").split() == sorted(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_caught_and_named(faults, name):
    message = faults(name)
    assert message.startswith(f"{name}: block (")
    assert FAULTS[name] in message


@pytest.mark.parametrize("name", FAULTS)
def test_same_kernel_without_the_fault_passes(faults, name):
    assert faults(name, "fixed") == "passed"


@pytest.mark.parametrize("name", LIMITS)
def test_launch_beyond_a_limit_names_kernel_and_limit(faults, name):
    assert faults(name) == LIMITS[name]
