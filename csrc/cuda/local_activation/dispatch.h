// From a call to the arithmetic and the arrays of its kernels.
#pragma once

#include "common/carved.cuh"
#include "local_activation/plan.h"
#include "local_activation/products.cuh"

namespace din_kernels::cuda {

// Calls body(Math{}) with the call's arithmetic.
template <typename Body>
void with_math(const LocalActivation& call, const Body& body) {
    if (call.dtype == DType::kBf16) return body(Mma<Bf16>{});
    if (call.dtype == DType::kFp16) return body(Mma<Fp16>{});
    if (call.precision == Precision::kTensorCores) return body(Tf32{});
    body(Fma{});
}

// [Q, D]: the caller's rows, or those that were gathered in the workspace.
inline const void* query_rows(const LocalActivation& call, const Workspace& work) {
    const Table& first = call.query.tables[0];
    return first.ids.data ? carved<const char>(call.workspace, work.query) : first.values;
}
template <typename S>
Global<const S> query_of(const LocalActivation& call, const Workspace& work) {
    return {static_cast<const S*>(query_rows(call, work)), call.queries * call.dim};
}

// A matrix [in, out] in the workspace, packed as the right side of a product.
inline Global<const uint32_t> packed_array(const LocalActivation& call, const Sizes& sizes, int64_t offset, int64_t in,
                                           int64_t out) {
    return carved_array<const uint32_t>(call.workspace, offset, packed_sizes(sizes, in, out).words);
}

}  // namespace din_kernels::cuda
