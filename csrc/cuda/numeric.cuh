// Storage types of the kernels, which compute in fp32, and their conversions.
#pragma once

#include <cstdint>

#include "ptx.cuh"

namespace din_kernels::cuda {

struct Bf16 {
    uint16_t bits;
};
struct Fp16 {
    uint16_t bits;
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Bf16 x) { return ptx::float_from_bits(uint32_t(x.bits) << 16); }
__device__ inline float widen(Fp16 x) { return ptx::float_from_fp16(x.bits); }

template <typename T>
__device__ T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
    return x;
}
template <>
__device__ inline Bf16 narrow<Bf16>(float x) {
    return {ptx::bf16_from_float(x)};
}
template <>
__device__ inline Fp16 narrow<Fp16>(float x) {
    return {ptx::fp16_from_float(x)};
}

// kCount elements that are read and written in one access.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
    T at[kCount];
};

}  // namespace din_kernels::cuda
