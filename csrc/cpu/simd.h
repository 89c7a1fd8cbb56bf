// Vectors of the widest registers of the ISA that this file is compiled for, by GCC / Clang vector extensions.
// Included by *_kernels.cpp alone; everything has internal linkage, so that no symbol is shared between ISAs.
#pragma once

#include <cstdint>
#include <cstring>

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes)));
    typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
    typedef int32_t integer __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
    typedef int64_t integer __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vec = typename VecOf<T>::type;
template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <typename T>
inline Vec<T> load(const T* p) {
    return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}
template <typename T>
inline void store(T* p, Vec<T> v) {
    *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}
template <typename T>
inline Vec<T> splat(T x) {
    return x - Vec<T>{};
}
template <typename T>
inline T sum(Vec<T> v) {
    // Pairwise, in an order that the lanes fix.
    T lanes[kLanes<T>];
    memcpy(lanes, &v, sizeof(v));
    for (int step = kLanes<T> / 2; step; step /= 2)
        for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    return lanes[0];
}

// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, ln 2 in two parts. Taylor in r: the first term left out is
// r^8 / 8! = 5e-9 in float and r^14 / 14! = 4e-18 in double, below half an ulp of either. Results stay normal: x is
// clamped, so that e^-inf is about 1e-38 (float) and no subnormal appears. NaN passes.
inline Vec<float> exp(Vec<float> x) {
    using V = Vec<float>;
    const V low = splat(-87.0f), high = splat(88.0f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const V shifted = x * splat(1.44269504f) + magic;
    const V n = shifted - magic;
    const V r = (x - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
    constexpr float kTaylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    V p = splat(1.0f / 5040);
    for (int i = 0; i < 7; ++i) p = p * r + kTaylor[i];
    using I = VecOf<float>::integer;
    const I power = ((I)shifted << 23) + (127 << 23);  // the low bits of `shifted` hold n
    return p * (V)power;
}
inline Vec<double> exp(Vec<double> x) {
    using V = Vec<double>;
    const V low = splat(-708.0), high = splat(709.0);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const V magic = splat(6755399441055744.0);  // 1.5 * 2^52
    const V shifted = x * splat(1.4426950408889634) + magic;
    const V n = shifted - magic;
    const V r = (x - n * splat(6.93145751953125e-1)) - n * splat(1.42860682030941723212e-6);
    constexpr double kTaylor[] = {
        1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1,           1};
    V p = splat(1.0 / 6227020800.0);
    for (int i = 0; i < 13; ++i) p = p * r + kTaylor[i];
    using I = VecOf<double>::integer;
    const I power = ((I)shifted << 52) + (int64_t(1023) << 52);
    return p * (V)power;
}

template <typename V>
inline V sigmoid(V x) {
    return 1 / (1 + exp(-x));
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
