// Weights packed as right sides of products, see packed.cuh, and the blocks of the first layer's weight.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "common/device.cuh"
#include "local_activation/plan.h"

namespace din_kernels::cuda {

// Columns of the blocks of the first layer's weight, each of `dim`, kAbsent for a block that the features do not have.
// weight_outer is [D (of q), D (of k)], row-major.
struct FeatureColumns {
    static constexpr int64_t kAbsent = -1;
    int64_t weight_q, weight_k, weight_difference, weight_qk, weight_outer, total;

    __host__ __device__ bool has_difference() const { return weight_difference != kAbsent; }
    __host__ __device__ bool has_outer() const { return weight_outer != kAbsent; }
};
// Throws std::invalid_argument where a feature set has no columns here. The compiler warns of one that is missing.
inline FeatureColumns feature_columns(const LocalActivation& call) {
    const int64_t d = call.dim, none = FeatureColumns::kAbsent;
    switch (call.features) {
        case Features::kConcat:
            return {0, d, 2 * d, 3 * d, none, 4 * d};
        case Features::kProduct:
            return {0, d, none, 2 * d, none, 3 * d};
        case Features::kOuter:
            return {0, d, none, none, 2 * d, 2 * d + d * d};
    }
    throw std::invalid_argument("features must be a set whose columns the CUDA kernels know, got number " +
                                std::to_string(int(call.features)));
}

// Packs the weights, or their transposes, at these offsets in the workspace.
void pack_weights(const LocalActivation& call, const Sizes& sizes, const PackedWeights& to, bool transposed,
                  Stream stream);

// Packs B [in, out] with B[k, n] = weight[n, first + k] + sign weight[n, second + k], or, transposed,
// B[k, n] = weight[k, first + n] + sign weight[k, second + n]. With sign 0 the first term stands alone.
// `count` such matrices lie one behind the other; their first terms are `apart` elements of weight from each other.
struct PackedSource {
    TypedArray weight;
    int64_t leading;             // columns of weight
    int64_t in, out, padded_in;  // zeros lie beyond in and out
    int64_t first, second;
    float sign;
    bool transposed;
    int64_t count = 1, apart = 0;
};
struct PackJob {
    PackedSource source;
    uint32_t* packed;
};
// Packs all matrices in one launch, at most kMaxPackJobs of them.
constexpr int kMaxPackJobs = 8;
void pack_matrices(const LocalActivation& call, const Sizes& sizes, const std::vector<PackJob>& jobs, Stream stream);

}  // namespace din_kernels::cuda
