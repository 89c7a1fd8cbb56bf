// Storage types of the kernels, which compute in fp32, and their conversions.
#pragma once

#include <cstdint>
#include <type_traits>

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

// Of two 16-bit elements, the first in the lower half.
template <typename T>
__device__ uint32_t word_of(T low, T high) {
    return uint32_t(low.bits) | uint32_t(high.bits) << 16;
}
template <typename T>
__device__ Vector<T, 2> pair_of(uint32_t word) {
    return {{{uint16_t(word)}, {uint16_t(word >> 16)}}};
}

// Two neighbours in one conversion.
template <typename T>
__device__ Vector<T, 2> narrow_pair(float low, float high) {
    if constexpr (std::is_same_v<T, Bf16>) return pair_of<T>(ptx::bf16x2_from_floats(low, high));
    if constexpr (std::is_same_v<T, Fp16>) return pair_of<T>(ptx::fp16x2_from_floats(low, high));
    if constexpr (std::is_same_v<T, float>) return {{low, high}};
}

template <typename T, int kCount>
__device__ Vector<T, kCount> narrow_vector(const Vector<float, kCount>& x) {
    static_assert(kCount <= 2);
    if constexpr (kCount == 2)
        return narrow_pair<T>(x.at[0], x.at[1]);
    else
        return {{narrow<T>(x.at[0])}};
}

// a * b, element by element, rounded once.
template <typename T, int kCount>
__device__ Vector<T, kCount> product(const Vector<T, kCount>& a, const Vector<T, kCount>& b) {
    Vector<T, kCount> result;
    if constexpr (kCount % 2 == 1 || std::is_same_v<T, float>) {
        for (int e = 0; e < kCount; ++e) result.at[e] = narrow<T>(widen(a.at[e]) * widen(b.at[e]));
    } else {
        for (int e = 0; e < kCount; e += 2) {
            const uint32_t x = word_of(a.at[e], a.at[e + 1]), y = word_of(b.at[e], b.at[e + 1]);
            const Vector<T, 2> pair =
                pair_of<T>(std::is_same_v<T, Bf16> ? ptx::multiply_bf16x2(x, y) : ptx::multiply_fp16x2(x, y));
            result.at[e] = pair.at[0], result.at[e + 1] = pair.at[1];
        }
    }
    return result;
}

}  // namespace din_kernels::cuda
