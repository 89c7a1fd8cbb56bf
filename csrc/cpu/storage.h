// Elements as memory holds them (float, double, BFloat16, Float16) to and from what kernels compute in, Wide<S>.
// Included by *_kernels.cpp alone; internal linkage, as in simd.h.
#pragma once

#include "convert.h"
#include "din_kernels/arrays.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

template <typename S>
struct FormatOf;
template <>
struct FormatOf<BFloat16> : Bf16 {};
template <>
struct FormatOf<Float16> : Fp16 {};

// kLanes<Wide<S>> elements
inline Vec<float> load_wide(const float* p) { return load(p); }
inline Vec<double> load_wide(const double* p) { return load(p); }
template <typename S>
inline Vec<float> load_wide(const S* p) {
    return FormatOf<S>::load(&p->bits);
}
inline void store_narrow(float* p, Vec<float> v) { store(p, v); }
inline void store_narrow(double* p, Vec<double> v) { store(p, v); }
template <typename S>
inline void store_narrow(S* p, Vec<float> v) {
    FormatOf<S>::store(&p->bits, v);
}

// One element, behind the last whole vector of a row
inline float wide_of(float x) { return x; }
inline double wide_of(double x) { return x; }
template <typename S>
inline float wide_of(S x) {
    const S lanes[kLanes<float>] = {x};
    return load_wide(lanes)[0];
}
inline void narrow_to(float* p, float x) { *p = x; }
inline void narrow_to(double* p, double x) { *p = x; }
template <typename S>
inline void narrow_to(S* p, float x) {
    S lanes[kLanes<float>];
    store_narrow(lanes, splat(x));
    *p = lanes[0];
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
