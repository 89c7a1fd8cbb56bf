// All inline PTX is here, in small named functions, each beside its meaning in plain C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/device.cuh"

namespace din_kernels::cuda::ptx {

__device__ inline float float_from_bits(uint32_t bits) {
#ifdef DIN_KERNELS_EMULATE
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
#else
    return __uint_as_float(bits);
#endif
}

__device__ inline uint32_t bits_from_float(float x) {
#ifdef DIN_KERNELS_EMULATE
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(x));
    return bits;
#else
    return __float_as_uint(x);
#endif
}

// Converts fp16 to fp32, which is exact.
__device__ inline float float_from_fp16(uint16_t bits) {
#ifdef DIN_KERNELS_EMULATE
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return float_from_bits(sign | 0x7F800000 | fraction << 13);
    if (exponent == 0) return float_from_bits(sign) + (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
    return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
#else
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#endif
}

// Rounds fp32 to fp16, to nearest with ties to even.
__device__ inline uint16_t fp16_from_float(float x) {
#ifdef DIN_KERNELS_EMULATE
    const uint16_t sign = uint16_t(bits_from_float(x) >> 16 & 0x8000);
    const float size = std::fabs(x);
    if (size != size) return 0x7FFF;
    if (size >= 65520.0f) return sign | 0x7C00;
    // Adding a power of two whose last place is fp16's last place at this size rounds as the hardware does.
    int exponent = 0;
    std::frexp(size, &exponent);
    const float last_place = std::ldexp(1.0f, (exponent < -13 ? -13 : exponent) - 11);
    const float rounded = std::nearbyint(size / last_place) * last_place;
    if (rounded < 0x1p-14f) return sign | uint16_t(rounded * 0x1p24f);
    const uint32_t bits = bits_from_float(rounded);
    return sign | uint16_t(((bits >> 23) - 112) << 10 | (bits >> 13 & 1023));
#else
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#endif
}

// Rounds fp32 to bf16, to nearest with ties to even.
__device__ inline uint16_t bf16_from_float(float x) {
#ifdef DIN_KERNELS_EMULATE
    const uint32_t bits = bits_from_float(x);
    if (x != x) return 0x7FFF;
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
#else
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#endif
}

// Both round two values at once, `low` to the lower half.
__device__ inline uint32_t bf16x2_from_floats(float low, float high) {
#ifdef DIN_KERNELS_EMULATE
    return uint32_t(bf16_from_float(low)) | uint32_t(bf16_from_float(high)) << 16;
#else
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#endif
}

__device__ inline uint32_t fp16x2_from_floats(float low, float high) {
#ifdef DIN_KERNELS_EMULATE
    return uint32_t(fp16_from_float(low)) | uint32_t(fp16_from_float(high)) << 16;
#else
    uint32_t bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#endif
}

// Multiplies two pairs of bf16 and rounds each product once: in fp32 it is exact. sm_80 has no multiplication of bf16,
// so -0 is added.
__device__ inline uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
#ifdef DIN_KERNELS_EMULATE
    const auto element = [](uint32_t word, int half) { return float_from_bits(word >> (16 * half) << 16); };
    return bf16x2_from_floats(element(a, 0) * element(b, 0), element(a, 1) * element(b, 1));
#else
    uint32_t product;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000));
    return product;
#endif
}

// Multiplies two pairs of fp16 and rounds each product once.
__device__ inline uint32_t multiply_fp16x2(uint32_t a, uint32_t b) {
#ifdef DIN_KERNELS_EMULATE
    const auto element = [](uint32_t word, int half) { return float_from_fp16(uint16_t(word >> (16 * half))); };
    return fp16x2_from_floats(element(a, 0) * element(b, 0), element(a, 1) * element(b, 1));
#else
    uint32_t product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
#endif
}

// Rounds fp32 to tf32, to nearest with ties away from zero: 10 bits of fraction, the rest 0.
__device__ inline uint32_t tf32_from_float(float x) {
#ifdef DIN_KERNELS_EMULATE
    const uint32_t bits = bits_from_float(x);
    return (bits & 0x7F800000) == 0x7F800000 ? bits : (bits + 0x1000) & ~0x1FFFu;
#else
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
#endif
}

// tanh with a relative error of at most 2^-11 (PTX ISA, tanh.approx.f32). The emulation errs by as much, since it
// rounds to 10 bits of fraction.
__device__ inline float tanh_approx(float x) {
#ifdef DIN_KERNELS_EMULATE
    return float_from_bits(tf32_from_float(std::tanh(x)));
#else
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// D += A B for A [16, 16], B [16, 8] of bf16 and D [16, 8] of fp32, spread over a warp.
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef DIN_KERNELS_EMULATE
    emulation::mma_m16n8k16(d, a, b, __LINE__, [](uint16_t bits) { return float_from_bits(uint32_t(bits) << 16); });
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// D += A B for A [16, 16], B [16, 8] of fp16.
__device__ inline void mma_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef DIN_KERNELS_EMULATE
    emulation::mma_m16n8k16(d, a, b, __LINE__, float_from_fp16);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// D += A B for A [16, 8], B [8, 8] of tf32.
__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef DIN_KERNELS_EMULATE
    emulation::mma_m16n8k8_tf32(d, a, b, __LINE__);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Loads four matrices, 8 x 8 of 16-bit elements or 8 x 4 of 32-bit ones: lane 8 m + i names row i (16 bytes) of matrix
// m by its byte offset in shared memory, register m of a lane gets the 32 bits at column lane % 4 of row lane / 4.
__device__ inline void ldmatrix_x4(uint32_t (&d)[4], uint32_t shared_address) {
#ifdef DIN_KERNELS_EMULATE
    emulation::ldmatrix_x4(d, shared_address, __LINE__);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address)
                 : "memory");
#endif
}

// Loads four matrices of 16-bit elements and transposes each: a lane gets rows 2 (lane % 4) and the next of column lane
// / 4.
__device__ inline void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t shared_address) {
#ifdef DIN_KERNELS_EMULATE
    emulation::ldmatrix_x4_trans(d, shared_address, __LINE__);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address)
                 : "memory");
#endif
}

// Starts to copy 16 bytes from global to shared memory, both aligned, of which `valid` are read and the rest are zeros.
// The bytes are there once the group that they are committed to was waited for; other threads see them after a barrier.
__device__ inline void copy_async_16(uint32_t shared_address, const void* from, uint32_t valid) {
#ifdef DIN_KERNELS_EMULATE
    emulation::start_copy(shared_address, from, 16, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address), "l"(from), "r"(valid)
                 : "memory");
#endif
}

__device__ inline void commit_copies() {
#ifdef DIN_KERNELS_EMULATE
    emulation::commit_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kLeft of this thread's newest groups are on their way.
template <int kLeft>
__device__ inline void wait_for_copies() {
#ifdef DIN_KERNELS_EMULATE
    emulation::wait_for_copies(kLeft);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace din_kernels::cuda::ptx
