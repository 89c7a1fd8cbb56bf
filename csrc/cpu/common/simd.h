// Vectors of the widest registers of the ISA that this file is compiled for, by GCC / Clang vector extensions.
// Included by kernels.cpp alone; everything has internal linkage, so that no symbol is shared between ISAs.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

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
    typedef uint32_t integer __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
    typedef uint64_t integer __attribute__((vector_size(kVectorBytes)));
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
// A store past the caches to an aligned address, which does not read the line first; `streamed` makes this thread's
// visible to others.
template <typename T>
inline void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
    store(p, v);
#endif
}
inline void streamed() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
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

// NaN passes.
inline Vec<float> clamp(Vec<float> x, float low, float high) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
#else
    x = x < low ? splat(low) : x;
    return x > high ? splat(high) : x;
#endif
}
// 1 / x for normal x below 2^126, to an ulp.
inline Vec<float> reciprocal(Vec<float> x) {
#if defined(__AVX512F__)
    // 14 bits and a Newton step: a division holds the multipliers for 10 cycles on Zen 4.
    const Vec<float> near = (Vec<float>)_mm512_rcp14_ps((__m512)x);
    return near + near * (1 - x * near);
#else
    return 1 / x;
#endif
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
    const I power = ((I)shifted << 23) + (127u << 23);  // the low bits of `shifted` hold n
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
    const I power = ((I)shifted << 52) + (uint64_t(1023) << 52);
    return p * (V)power;
}

// 1 / (1 + e^-x). In float e^-x = 2^n 2^f with n = round(t), f = t - n, t = -x log2 e. f is one fused step, so what is
// lost is the rounding of log2 e, 1.3e-8 |x|, less than that of x itself; 7.5e-8 |x| where the ISA fuses nothing. 2^f
// is the minimax polynomial of degree 6, 2e-9 relative over |f| <= 1/2. |x| above 87 counts as 87. NaN passes.
inline Vec<float> sigmoid(Vec<float> x) {
    using V = Vec<float>;
    x = clamp(x, -87.0f, 87.0f);
    const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const V shifted = magic - x * splat(1.44269504f), n = shifted - magic;
    const V f = -n - x * splat(1.44269504f);
    constexpr float kPowers[] = {1.33988750e-3f, 9.61843692e-3f, 5.55033237e-2f, 0.240226477f, 0.693147182f, 1};
    V p = splat(1.53533620e-4f);
    for (int i = 0; i < 6; ++i) p = p * f + kPowers[i];
    using I = VecOf<float>::integer;
    const I power = ((I)shifted << 23) + (127u << 23);  // the low bits of `shifted` hold n
    return reciprocal(1 + p * (V)power);
}
inline Vec<double> sigmoid(Vec<double> x) { return 1 / (1 + exp(-x)); }

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
