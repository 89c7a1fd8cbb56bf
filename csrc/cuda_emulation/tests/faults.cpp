// Small kernels, each of which is right but for one planted fault. `faults NAME` runs one and prints what the emulation
// says, or "passed"; `faults NAME fixed` runs it with the fault taken out.
#include <cstdio>
#include <map>
#include <string>

#include "common/accessors.cuh"
#include "common/launch.cuh"

using namespace din_kernels::cuda;

namespace {

constexpr int kThreads = 64;

// An array [kThreads] that is initialized, so that a race is not first seen as an uninitialized read.
Shared<float> initialized() {
    const Shared<float> values(0, kThreads);
    values.store(int(threadIdx.x), 0.0f);
    __syncthreads();
    return values;
}

void shared_out_of_bounds(Global<float>, bool fixed) {
    const Shared<float> values(0, kThreads);
    values.store(int(threadIdx.x) + (fixed ? 0 : 1), 1.0f);
}

void shared_array_beyond_the_launch(Global<float>, bool fixed) {
    const Shared<float> values(0, fixed ? kThreads : 1024);
    values.store(int(threadIdx.x), 1.0f);
}

void global_out_of_bounds(Global<float> out, bool fixed) { out.store(int64_t(threadIdx.x) - (fixed ? 0 : 1), 1.0f); }

void misaligned_global_vector(Global<float> out, bool fixed) {
    if (threadIdx.x < kThreads / 4) (void)out.load<2>(2 * int(threadIdx.x) + (fixed ? 0 : 1));
}

void misaligned_shared_vector(Global<float>, bool fixed) {
    const Shared<float> values(0, kThreads);
    const int at = 2 * (int(threadIdx.x) % 16) + (fixed ? 0 : 1);
    if (threadIdx.x < 16) values.store<2>(at, Vector<float, 2>{{1.0f, 2.0f}});
}

void barrier_not_reached_by_all(Global<float>, bool fixed) {
    if (threadIdx.x == 5 && !fixed) return;
    __syncthreads();
}

void threads_at_different_barriers(Global<float>, bool fixed) {
    if (threadIdx.x < 32 && !fixed)
        __syncthreads();
    else
        __syncthreads();
    if (fixed) __syncthreads();
}

void read_while_another_thread_writes(Global<float> out, bool fixed) {
    const Shared<float> values = initialized();
    values.store(int(threadIdx.x), float(threadIdx.x));
    if (fixed) __syncthreads();
    out.store(threadIdx.x, values[kThreads - 1 - int(threadIdx.x)]);
}

void written_while_another_thread_reads(Global<float> out, bool fixed) {
    const Shared<float> values = initialized();
    out.store(threadIdx.x, values[kThreads - 1 - int(threadIdx.x)]);
    if (fixed) __syncthreads();
    values.store(int(threadIdx.x), 1.0f);
}

void written_by_two_threads(Global<float>, bool fixed) {
    const Shared<float> values(0, kThreads);
    values.store(int(threadIdx.x) / (fixed ? 1 : 2), 1.0f);
}

void lanes_exchange_without_syncwarp(Global<float> out, bool fixed) {
    const Shared<float> values = initialized();
    values.store(int(threadIdx.x), float(threadIdx.x));
    if (fixed) __syncwarp();
    out.store(threadIdx.x, values[int(threadIdx.x) ^ 1]);
}

void syncwarp_between_warps(Global<float> out, bool fixed) {
    const Shared<float> values = initialized();
    values.store(int(threadIdx.x), float(threadIdx.x));
    if (fixed)
        __syncthreads();
    else
        __syncwarp();
    out.store(threadIdx.x, values[int(threadIdx.x) ^ 32]);
}

void read_before_the_copy_was_waited_for(Global<float> out, bool fixed) {
    const Shared<float> values(0, 4 * kThreads);
    const Global<const float> from(out.address(0, 4 * kThreads), 4 * kThreads);
    copy_async_16(values, 4 * int(threadIdx.x), from, 4 * int64_t(threadIdx.x), 4);
    ptx::commit_copies();
    if (fixed) ptx::wait_for_copies<0>();
    (void)values[4 * int(threadIdx.x)];
}

void waited_for_the_wrong_group(Global<float> out, bool fixed) {
    const Shared<float> values(0, 8 * kThreads);
    const Global<const float> from(out.address(0, 4 * kThreads), 4 * kThreads);
    for (int stage = 0; stage < 2; ++stage) {
        copy_async_16(values, 4 * (int(threadIdx.x) + stage * kThreads), from, 0, 4);
        ptx::commit_copies();
    }
    ptx::wait_for_copies<1>();
    (void)values[4 * (int(threadIdx.x) + (fixed ? 0 : kThreads))];
}

void copy_of_another_thread_without_barrier(Global<float> out, bool fixed) {
    const Shared<float> values(0, 4 * kThreads);
    const Global<const float> from(out.address(0, 4 * kThreads), 4 * kThreads);
    values.store<4>(4 * int(threadIdx.x), Vector<float, 4>{});
    __syncthreads();
    copy_async_16(values, 4 * int(threadIdx.x), from, 0, 4);
    ptx::commit_copies();
    ptx::wait_for_copies<0>();
    if (fixed) __syncthreads();
    (void)values[4 * (int(threadIdx.x) ^ 1)];
}

void copy_into_what_others_still_read(Global<float> out, bool fixed) {
    const Shared<float> values(0, 4 * kThreads);
    const Global<const float> from(out.address(0, 4 * kThreads), 4 * kThreads);
    values.store<4>(4 * int(threadIdx.x), Vector<float, 4>{});
    __syncthreads();
    (void)values[4 * (int(threadIdx.x) ^ 1)];
    if (fixed) __syncthreads();
    if (threadIdx.x == kThreads - 1) copy_async_16(values, 4 * int(threadIdx.x), from, 0, 4);
}

void uninitialized_shared_read(Global<float> out, bool fixed) {
    const Shared<float> values(0, kThreads);
    if (fixed || threadIdx.x != 7) values.store(int(threadIdx.x), 1.0f);
    __syncthreads();
    out.store(threadIdx.x, values[int(threadIdx.x)]);
}

// The second block finds what the first one left, which a device does not promise.
void read_of_the_last_blocks_shared_memory(Global<float> out, bool fixed) {
    const Shared<float> values(0, kThreads);
    if (fixed || blockIdx.x == 0) values.store(int(threadIdx.x), 1.0f);
    out.store(threadIdx.x, values[int(threadIdx.x)]);
}

void warp_operation_without_all_lanes(Global<float>, bool fixed) {
    if (threadIdx.x == 3 && !fixed) return;
    (void)__shfl_xor_sync(~0u, int(threadIdx.x), 1);
}

void misaligned_ldmatrix_row(Global<float>, bool fixed) {
    const Shared<float> values(0, 4 * kThreads);
    values.store<4>(4 * int(threadIdx.x), Vector<float, 4>{});
    __syncthreads();
    uint32_t fragment[4];
    if (fixed)
        ptx::ldmatrix_x4(fragment, values.address_16(4 * (int(threadIdx.x) % 32)));
    else
        ptx::ldmatrix_x4(fragment, 4 * (threadIdx.x % 32));
}

#define DIN_KERNELS_TEST(name) {#name, name}
const std::map<std::string, void (*)(Global<float>, bool)> kTests = {
    DIN_KERNELS_TEST(shared_out_of_bounds),
    DIN_KERNELS_TEST(shared_array_beyond_the_launch),
    DIN_KERNELS_TEST(global_out_of_bounds),
    DIN_KERNELS_TEST(misaligned_global_vector),
    DIN_KERNELS_TEST(misaligned_shared_vector),
    DIN_KERNELS_TEST(barrier_not_reached_by_all),
    DIN_KERNELS_TEST(threads_at_different_barriers),
    DIN_KERNELS_TEST(read_while_another_thread_writes),
    DIN_KERNELS_TEST(written_while_another_thread_reads),
    DIN_KERNELS_TEST(written_by_two_threads),
    DIN_KERNELS_TEST(lanes_exchange_without_syncwarp),
    DIN_KERNELS_TEST(syncwarp_between_warps),
    DIN_KERNELS_TEST(read_before_the_copy_was_waited_for),
    DIN_KERNELS_TEST(waited_for_the_wrong_group),
    DIN_KERNELS_TEST(copy_of_another_thread_without_barrier),
    DIN_KERNELS_TEST(copy_into_what_others_still_read),
    DIN_KERNELS_TEST(uninitialized_shared_read),
    DIN_KERNELS_TEST(read_of_the_last_blocks_shared_memory),
    DIN_KERNELS_TEST(warp_operation_without_all_lanes),
    DIN_KERNELS_TEST(misaligned_ldmatrix_row),
};

}  // namespace

int main(int count, char** arguments) {
    const std::string name = count > 1 ? arguments[1] : "", option = count > 2 ? arguments[2] : "";
    if (name == "list") {
        for (const auto& [known, kernel] : kTests) std::puts(known.c_str());
        return 0;
    }
    alignas(16) static float memory[4 * kThreads + 4];
    const Global<float> out(memory, 4 * kThreads);
    try {
        if (name == "too_many_threads") {
            launch("kernel", shared_out_of_bounds, Grid{1}, 2048, 0, nullptr, out, true);
        } else if (name == "too_much_shared_memory") {
            launch("kernel", shared_out_of_bounds, Grid{1}, kThreads, 228 * 1024, nullptr, out, true);
        } else if (name == "too_many_blocks") {
            launch("kernel", shared_out_of_bounds, Grid{1, 65536}, kThreads, 1024, nullptr, out, true);
        } else {
            launch(name.c_str(), kTests.at(name), Grid{2}, kThreads, 32 * kThreads, nullptr, out, option == "fixed");
        }
        std::puts("passed");
    } catch (const std::runtime_error& error) {
        std::puts(error.what());
    }
}
