// Storage types and their conversions; kernels compute in fp32.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/ptx.cuh"

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

// kCount elements that are read and written at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
    T at[kCount];
};

// Reads the bytes of a value as another type.
template <typename To, typename From>
__device__ To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

// Converts two neighbours at once.
template <typename T>
__device__ Vector<T, 2> narrow_pair(float low, float high) {
    if constexpr (std::is_same_v<T, Bf16>) return bits_as<Vector<T, 2>>(ptx::bf16x2_from_floats(low, high));
    if constexpr (std::is_same_v<T, Fp16>) return bits_as<Vector<T, 2>>(ptx::fp16x2_from_floats(low, high));
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
    if constexpr (kCount % 2 == 1 || std::is_same_v<T, float>) {
        Vector<T, kCount> result;
        for (int e = 0; e < kCount; ++e) result.at[e] = narrow<T>(widen(a.at[e]) * widen(b.at[e]));
        return result;
    } else {
        using Words = Vector<uint32_t, kCount / 2>;
        const Words x = bits_as<Words>(a), y = bits_as<Words>(b);
        Words result;
        for (int w = 0; w < kCount / 2; ++w) {
            if constexpr (std::is_same_v<T, Bf16>)
                result.at[w] = ptx::multiply_bf16x2(x.at[w], y.at[w]);
            else
                result.at[w] = ptx::multiply_fp16x2(x.at[w], y.at[w]);
        }
        return bits_as<Vector<T, kCount>>(result);
    }
}

}  // namespace din_kernels::cuda
