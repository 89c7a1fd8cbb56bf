// Sums over a warp and prefix sums over a block.
#pragma once

#include "common/accessors.cuh"

namespace din_kernels::cuda {

constexpr int kScanThreads = 256;

// Every lane adds in the same order, so that all of them get the same bits.
template <typename T>
__device__ T warp_sum(T value) {
    for (int flip = 16; flip > 0; flip /= 2) value += __shfl_xor_sync(~0u, value, flip);
    return value;
}

template <typename T>
struct Scanned {
    T before;  // sum of the values of the threads before this one
    T total;   // of the whole block
};

// kScanThreads threads call it. `sums` [kScanThreads / 32] is scratch, which is free again after the next barrier.
template <typename T>
__device__ Scanned<T> block_scan(T value, const Shared<T>& sums) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    T inclusive = value;
    for (int up = 1; up < 32; up *= 2) {
        const T other = __shfl_up_sync(~0u, inclusive, up);
        if (lane >= up) inclusive += other;
    }
    if (lane == 31) sums.store(warp, inclusive);
    __syncthreads();
    Scanned<T> result{inclusive - value, 0};
    for (int w = 0; w < kScanThreads / 32; ++w) {
        const T sum = sums[w];
        result.total += sum;
        if (w < warp) result.before += sum;
    }
    return result;
}

}  // namespace din_kernels::cuda
