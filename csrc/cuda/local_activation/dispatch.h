// From a call to the arithmetic and the arrays of its kernels.
#pragma once

#include "local_activation/products.cuh"
#include "local_activation/plan.h"

namespace din_kernels::cuda {

// body(Math{}) with the call's arithmetic.
template <typename Body>
void with_math(const LocalActivation& call, const Body& body) {
    if (call.dtype == DType::kBf16) return body(Mma<Bf16>{});
    if (call.dtype == DType::kFp16) return body(Mma<Fp16>{});
    if (call.precision == Precision::kTensorCores) return body(Tf32{});
    body(Fma{});
}

// [Q, D]: the caller's, or gathered in the workspace.
template <typename S>
const S* query_of(const LocalActivation& call, const UnitWorkspace& work) {
    if (call.query.ids[0].data) return carved<const S>(call.workspace, work.query);
    return static_cast<const S*>(call.query.data[0]);
}

}  // namespace din_kernels::cuda
