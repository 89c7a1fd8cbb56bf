// Elements of arrays whose type is known at run time only. Weights and parameters are such arrays; a call reads them
// once.
#pragma once

#include "common/accessors.cuh"
#include "din_kernels/cuda/local_activation.h"

namespace din_kernels::cuda {

__device__ inline float typed_at(const TypedArray& array, int64_t at) {
    switch (array.dtype) {
        case DType::kFloat:
            return Global<const float>(static_cast<const float*>(array.data), array.size)[at];
        case DType::kBf16:
            return widen(Global<const Bf16>(static_cast<const Bf16*>(array.data), array.size)[at]);
        default:
            return widen(Global<const Fp16>(static_cast<const Fp16*>(array.data), array.size)[at]);
    }
}

}  // namespace din_kernels::cuda
