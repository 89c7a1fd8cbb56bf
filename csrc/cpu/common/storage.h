// Vectors and rows of elements as memory holds them (float, double, BFloat16, Float16), computed in Wide<S>.
// Included by kernels.cpp alone; internal linkage, as in simd.h.
#pragma once

#include <type_traits>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "common/simd.h"
#include "din_kernels/arrays.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

template <typename To, typename From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
inline float widen(Float16 x) {
    // The exponent moves from bias 15 to 127 by a product with 2^112, which makes subnormals right as well.
    const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
    const float scaled = bit_cast<float>(magnitude) * bit_cast<float>(uint32_t(127 + 112) << 23);
    const uint32_t infinite = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    return bit_cast<float>(bit_cast<uint32_t>(scaled) | infinite | sign);
}

// Round to nearest, ties to even; NaN stays NaN.
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(double x, double* to) { *to = x; }
inline void narrow(float x, BFloat16* to) {
    const uint32_t bits = bit_cast<uint32_t>(x), rounded = bits + 0x7fff + ((bits >> 16) & 1);
    to->bits = uint16_t(x != x ? 0x7fc0 : rounded >> 16);
}
inline void narrow(float x, Float16* to) {
    const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t half;
    if (magnitude > 0x7f800000) {
        half = 0x7e00;  // NaN
    } else if (magnitude >= 0x477ff000) {
        half = 0x7c00;  // from 65520 on: infinity
    } else if (magnitude < 0x38800000) {
        // Below 2^-14: adding 0.5 leaves units of 2^-24 in the low bits, rounded by the addition.
        half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
    } else {
        half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    }
    to->bits = uint16_t(half | sign);
}

// kLanes<Wide<S>> elements
inline Vec<float> load_wide(const float* p) { return load(p); }
inline Vec<double> load_wide(const double* p) { return load(p); }
inline void store_narrow(float* p, Vec<float> v) { store(p, v); }
inline void store_narrow(double* p, Vec<double> v) { store(p, v); }
template <typename S>
inline Vec<float> load_wide(const S* p) {
    Vec<float> v;
#if defined(__F16C__)
    if constexpr (std::is_same_v<S, Float16>) {
#if defined(__AVX512F__)
        return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
        return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
    }
#endif
    float lanes[kLanes<float>];
    for (int i = 0; i < kLanes<float>; ++i) lanes[i] = widen(p[i]);
    memcpy(&v, lanes, sizeof(v));
    return v;
}
template <typename S>
inline void store_narrow(S* p, Vec<float> v) {
#if defined(__F16C__)
    if constexpr (std::is_same_v<S, Float16>) {
#if defined(__AVX512F__)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#else
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#endif
        return;
    }
#endif
    float lanes[kLanes<float>];
    memcpy(lanes, &v, sizeof(v));
    for (int i = 0; i < kLanes<float>; ++i) narrow(lanes[i], p + i);
}

// The first `count` elements of a vector, fewer than its lanes; the others load as 0 and are not stored.
template <typename S>
inline Vec<Wide<S>> load_first(const S* p, int64_t count) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<S, float>) return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
#endif
    S lanes[kLanes<Wide<S>>] = {};
    memcpy(lanes, p, size_t(count) * sizeof(S));
    return load_wide(lanes);
}
template <typename S>
inline void store_first(S* p, Vec<Wide<S>> v, int64_t count) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<S, float>) return _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
#endif
    S lanes[kLanes<Wide<S>>];
    store_narrow(lanes, v);
    memcpy(p, lanes, size_t(count) * sizeof(S));
}

// to[0 .. count) = from[0 .. count). A last vector that is not full overlaps the one before it: element by element the
// compiler would call memmove for what is left of every row.
template <typename S>
inline void widen_row(const S* __restrict from, int64_t count, Wide<S>* __restrict to) {
    int64_t i = 0;
    for (; i + kLanes<Wide<S>> <= count; i += kLanes<Wide<S>>) store(to + i, load_wide(from + i));
    if (i > 0) {
        const int64_t last = count - kLanes<Wide<S>>;
        if (i < count) store(to + last, load_wide(from + last));
        return;
    }
    for (; i < count; ++i) to[i] = widen(from[i]);
}
template <typename S>
inline void narrow_row(const Wide<S>* __restrict from, int64_t count, S* __restrict to) {
    int64_t i = 0;
    for (; i + kLanes<Wide<S>> <= count; i += kLanes<Wide<S>>) store_narrow(to + i, load(from + i));
    if (i > 0) {
        const int64_t last = count - kLanes<Wide<S>>;
        if (i < count) store_narrow(to + last, load(from + last));
        return;
    }
    for (; i < count; ++i) narrow(from[i], to + i);
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
