// From types and widths known at run time to those of a kernel.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <type_traits>

#include "common/numeric.cuh"
#include "din_kernels/cuda.h"

namespace din_kernels::cuda {

// Calls body(T{}) with the storage type.
template <typename Body>
void with_dtype(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::kFloat:
            return body(float{});
        case DType::kBf16:
            return body(Bf16{});
        case DType::kFp16:
            return body(Fp16{});
        case DType::kDouble:
            throw std::invalid_argument("dtype must be float32, bfloat16 or float16, got float64");
    }
}

template <int kCount>
using Width = std::integral_constant<int, kCount>;

// Says whether rows at these addresses can be read kCount elements of T at a time, if kCount divides their length.
template <int kCount, typename T>
bool aligned_for(std::initializer_list<const void*> rows) {
    bool aligned = true;
    for (const void* address : rows) aligned &= reinterpret_cast<uintptr_t>(address) % (kCount * sizeof(T)) == 0;
    return aligned;
}

// Calls body(Width<4>{}) or body(Width<1>{}) with the elements per access to rows of `dim`.
template <typename Body>
void with_width(int64_t dim, bool aligned, const Body& body) {
    if (dim % 4 == 0 && aligned)
        body(Width<4>{});
    else
        body(Width<1>{});
}

}  // namespace din_kernels::cuda
