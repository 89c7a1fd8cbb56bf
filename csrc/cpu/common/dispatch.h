// From types known at run time to those of a kernel.
#pragma once

#include "din_kernels/arrays.h"

namespace din_kernels::cpu {

// body(S{}) with the element type S.
template <typename Body>
auto with_dtype(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::kDouble:
            return body(double{});
        case DType::kBf16:
            return body(BFloat16{});
        case DType::kFp16:
            return body(Float16{});
        case DType::kFloat:
            break;
    }
    return body(float{});
}

// body(T{}) with the type that kernels compute in.
template <typename Body>
auto with_arithmetic_type(DType dtype, const Body& body) {
    return dtype == DType::kDouble ? body(double{}) : body(float{});
}

}  // namespace din_kernels::cpu
