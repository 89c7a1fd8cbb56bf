// The table of kernels that the active ISA compiled for a type.
#pragma once

#include <type_traits>

#include "isa.h"

// Defines select_kernels<T>(), which returns `name`_float or `name`_double of the active ISA, both of type Table<T>.
#define DIN_KERNELS_SELECT_ISA(isa, name)       \
    {                                           \
        if constexpr (std::is_same_v<T, float>) \
            return isa::name##_float;           \
        else                                    \
            return isa::name##_double;          \
    }
#ifdef DIN_KERNELS_HAVE_AVX512
#define DIN_KERNELS_CASE_AVX512(name) \
    case Isa::kAvx512:                \
        DIN_KERNELS_SELECT_ISA(avx512, name)
#else
#define DIN_KERNELS_CASE_AVX512(name)
#endif
#ifdef DIN_KERNELS_HAVE_AVX2
#define DIN_KERNELS_CASE_AVX2(name) \
    case Isa::kAvx2:                \
        DIN_KERNELS_SELECT_ISA(avx2, name)
#else
#define DIN_KERNELS_CASE_AVX2(name)
#endif
#define DIN_KERNELS_SELECT(Table, name)                \
    template <typename T>                              \
    const Table<T>& select_kernels() {                 \
        switch (active_isa()) {                        \
            DIN_KERNELS_CASE_AVX512(name)              \
            DIN_KERNELS_CASE_AVX2(name)                \
            default:                                   \
                DIN_KERNELS_SELECT_ISA(baseline, name) \
        }                                              \
    }
