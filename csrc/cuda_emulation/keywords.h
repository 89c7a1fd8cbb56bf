// CUDA's keywords, built-in variables and functions on top of the emulated machine, as far as the kernels use them.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using dim3 = din_kernels::emulation::Dim3;

#define threadIdx (::din_kernels::emulation::thread_index())
#define blockIdx (::din_kernels::emulation::block_index())
#define blockDim (::din_kernels::emulation::block_dim())
#define gridDim (::din_kernels::emulation::grid_dim())

// `line` is the caller's: threads that wait at different barriers are a fault.
inline void __syncthreads(int line = __builtin_LINE()) { din_kernels::emulation::barrier(line); }
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    din_kernels::emulation::warp_barrier(line, mask);
}

namespace din_kernels::emulation {

// The value that lane `from` brought to the warp operation.
template <typename T>
T exchanged(const unsigned char* left, int from) {
    T value;
    std::memcpy(&value, left + from * kExchange, sizeof(T));
    return value;
}

template <typename T>
const unsigned char* exchange(const char* operation, int line, unsigned mask, const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kExchange);
    return exchange(operation, line, mask, &value, sizeof(T));
}

}  // namespace din_kernels::emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int line = __builtin_LINE()) {
    return din_kernels::emulation::exchanged<T>(din_kernels::emulation::exchange("__shfl_sync", line, mask, value),
                                                from & 31);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int line = __builtin_LINE()) {
    return din_kernels::emulation::exchanged<T>(din_kernels::emulation::exchange("__shfl_xor_sync", line, mask, value),
                                                din_kernels::emulation::lane() ^ flip);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned up, int line = __builtin_LINE()) {
    const int lane = din_kernels::emulation::lane(), from = lane - int(up);
    return din_kernels::emulation::exchanged<T>(din_kernels::emulation::exchange("__shfl_up_sync", line, mask, value),
                                                from < 0 ? lane : from);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, int line = __builtin_LINE()) {
    const unsigned char* left = din_kernels::emulation::exchange("__ballot_sync", line, mask, vote);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane)
        votes |= unsigned(din_kernels::emulation::exchanged<bool>(left, lane)) << lane;
    return votes;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
