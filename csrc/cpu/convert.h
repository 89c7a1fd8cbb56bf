// Values as they are stored (float, double, bf16, fp16) to and from vectors of the arithmetic type.
#pragma once

#include "din_kernels/local_activation.h"
#include "simd.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t Bits16Unaligned __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

inline Bits32 widen(const uint16_t* p) {
    return __builtin_convertvector((Bits16) * reinterpret_cast<const Bits16Unaligned*>(p), Bits32);
}
inline void narrow(Bits32 bits, uint16_t* p) {
    *reinterpret_cast<Bits16Unaligned*>(p) = __builtin_convertvector(bits, Bits16);
}

struct Bf16 {  // the upper half of a float
    static Vec<float> load(const uint16_t* p) { return (Vec<float>)(widen(p) << 16); }
    static void store(uint16_t* p, Vec<float> x) {
        const Bits32 bits = (Bits32)x;
        const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
        narrow(x == x ? rounded : (bits >> 16) | 0x40, p);                  // NaN stays NaN
    }
};

struct Fp16 {  // 1 sign, 5 exponent (bias 15), 10 mantissa bits
    static Vec<float> load(const uint16_t* p) {
        const Bits32 h = widen(p), magnitude = (h & 0x7fff) << 13;
        // Rebiasing by a product takes subnormals along: 2^112 = 2^(127 - 15).
        const Vec<float> scaled = (Vec<float>)magnitude * splat(5.192296858534828e33f);
        const Bits32 special = magnitude | 0x7f800000;
        const Bits32 bits = magnitude >= (0x7c00u << 13) ? special : (Bits32)scaled;
        return (Vec<float>)(bits | (h & 0x8000) << 16);
    }
    static void store(uint16_t* p, Vec<float> x) {
        const Bits32 bits = (Bits32)x, sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
        // The magic addend has the subnormals' last place (2^-24) as its own, so the sum rounds to it.
        const Bits32 subnormal = (Bits32)((Vec<float>)magnitude + splat(0.5f)) - 0x3f000000;
        const Bits32 normal = (magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13;
        const Bits32 nan = Bits32{} + 0x7e00, infinite = Bits32{} + 0x7c00;
        Bits32 half = magnitude < 0x38800000 ? subnormal : normal;
        half = magnitude >= 0x477ff000 ? infinite : half;  // 65520, which rounds up
        half = magnitude > 0x7f800000 ? nan : half;
        narrow(half | sign, p);
    }
};

template <typename Format>
inline void read_half(const uint16_t* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + kLanes<float> <= count; i += kLanes<float>) store(to + i, Format::load(from + i));
    if (i == count) return;
    uint16_t last[kLanes<float>] = {};
    float values[kLanes<float>];
    memcpy(last, from + i, (count - i) * sizeof(uint16_t));
    store(values, Format::load(last));
    memcpy(to + i, values, (count - i) * sizeof(float));
}
template <typename Format>
inline void write_half(const float* from, int64_t count, uint16_t* to) {
    int64_t i = 0;
    for (; i + kLanes<float> <= count; i += kLanes<float>) Format::store(to + i, load(from + i));
    if (i == count) return;
    float last[kLanes<float>] = {};
    uint16_t values[kLanes<float>];
    memcpy(last, from + i, (count - i) * sizeof(float));
    Format::store(values, load(last));
    memcpy(to + i, values, (count - i) * sizeof(uint16_t));
}

template <typename T>
inline void copy_values(const T* from, int64_t count, T* to) {
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
    for (; i < count; ++i) to[i] = from[i];
}

inline int64_t bytes_of(Storage storage) {
    return storage == Storage::kDouble ? 8 : storage == Storage::kFloat ? 4 : 2;
}

// to[0 .. count) = the values from element `at` of `from` on
inline void read_values(Storage storage, const void* from, int64_t at, int64_t count, float* to) {
    if (storage == Storage::kFloat)
        copy_values(static_cast<const float*>(from) + at, count, to);
    else if (storage == Storage::kBf16)
        read_half<Bf16>(static_cast<const uint16_t*>(from) + at, count, to);
    else
        read_half<Fp16>(static_cast<const uint16_t*>(from) + at, count, to);
}
inline void read_values(Storage, const void* from, int64_t at, int64_t count, double* to) {
    copy_values(static_cast<const double*>(from) + at, count, to);
}

inline void write_values(Storage storage, const float* from, int64_t count, void* to, int64_t at) {
    if (storage == Storage::kFloat)
        copy_values(from, count, static_cast<float*>(to) + at);
    else if (storage == Storage::kBf16)
        write_half<Bf16>(from, count, static_cast<uint16_t*>(to) + at);
    else
        write_half<Fp16>(from, count, static_cast<uint16_t*>(to) + at);
}
inline void write_values(Storage, const double* from, int64_t count, void* to, int64_t at) {
    copy_values(from, count, static_cast<double*>(to) + at);
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
