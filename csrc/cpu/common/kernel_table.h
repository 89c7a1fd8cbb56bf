// Kernels of one op for every type: each ISA exports one table of them.
#pragma once

#include <type_traits>

#include "common/isa.h"
#include "din_kernels/arrays.h"

namespace din_kernels::cpu {

// For every element type that memory holds.
template <template <typename> class Kernels>
struct KernelTable {
    Kernels<float> of_float;
    Kernels<double> of_double;
    Kernels<BFloat16> of_bfloat16;
    Kernels<Float16> of_float16;

    template <typename S>
    const Kernels<S>& of() const {
        if constexpr (std::is_same_v<S, float>)
            return of_float;
        else if constexpr (std::is_same_v<S, double>)
            return of_double;
        else if constexpr (std::is_same_v<S, BFloat16>)
            return of_bfloat16;
        else
            return of_float16;
    }
};

// For every type that kernels compute in.
template <template <typename> class Kernels>
struct ArithmeticTable {
    Kernels<float> of_float;
    Kernels<double> of_double;

    template <typename T>
    const Kernels<T>& of() const {
        if constexpr (std::is_same_v<T, float>)
            return of_float;
        else
            return of_double;
    }
};

}  // namespace din_kernels::cpu

// Declares table `name` of every ISA, and name_here(): that of the ISA which this process runs.
#ifdef DIN_KERNELS_HAVE_AVX2
#define DIN_KERNELS_CASE_AVX2(name) \
    if (isa == Isa::kAvx2) return avx2::name;
#else
#define DIN_KERNELS_CASE_AVX2(name)
#endif
#ifdef DIN_KERNELS_HAVE_AVX512
#define DIN_KERNELS_CASE_AVX512(name) \
    if (isa == Isa::kAvx512) return avx512::name;
#else
#define DIN_KERNELS_CASE_AVX512(name)
#endif
#define DIN_KERNELS_TABLES(Table, name)                  \
    namespace baseline {                                 \
    extern const Table name;                             \
    }                                                    \
    namespace avx2 {                                     \
    extern const Table name;                             \
    }                                                    \
    namespace avx512 {                                   \
    extern const Table name;                             \
    }                                                    \
    [[maybe_unused]] static const Table& name##_here() { \
        [[maybe_unused]] const Isa isa = active_isa();   \
        DIN_KERNELS_CASE_AVX2(name)                      \
        DIN_KERNELS_CASE_AVX512(name)                    \
        return baseline::name;                           \
    }
