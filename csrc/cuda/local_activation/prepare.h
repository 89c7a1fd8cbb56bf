// What has to be there before a tile is computed: packed weights, where each candidate's pairs are, and c_i; what a
// folded call has beside them is in fold.h.
#pragma once

#include <vector>

#include "local_activation/plan.h"

namespace din_kernels::cuda {

// rows: of a tile.
void prepare_unit(const LocalActivation& call, const UnitSizes& sizes, const UnitWorkspace& work, int rows,
                  Stream stream);

// Packs B [in, out] with B[k, n] = weight[n, first + k] + sign weight[n, second + k], or, transposed,
// B[k, n] = weight[k, first + n] + sign weight[k, second + n]; sign 0: the first term alone.
// `count` such matrices one behind the other, whose first terms are `apart` elements of weight from each other.
struct PackedSource {
    TypedArray weight;
    int64_t leading;             // columns of weight
    int64_t in, out, padded_in;  // beyond in and out come zeros
    int64_t first, second;
    float sign;
    bool transposed;
    int64_t count = 1, apart = 0;
};
struct PackJob {
    PackedSource source;
    uint32_t* packed;
};
// All in one launch; at most kMaxPackJobs.
constexpr int kMaxPackJobs = 8;
void pack_matrices(const LocalActivation& call, const UnitSizes& sizes, const std::vector<PackJob>& jobs,
                   Stream stream);

// Columns of the first layer's weight: the blocks Wq, Wk, Wd (concat only) and Wp, each of `dim`; Wp of outer features
// is Wo, [D (of q), D (of k)].
struct FeatureColumns {
    int64_t query, keys, difference, products, total;
    bool has_difference, outer;
};
inline FeatureColumns feature_columns(const LocalActivation& call) {
    const int64_t d = call.dim;
    if (call.features == Features::kConcat) return {0, d, 2 * d, 3 * d, 4 * d, true, false};
    if (call.features == Features::kOuter) return {0, d, 0, 2 * d, 2 * d + d * d, false, true};
    return {0, d, 0, 2 * d, 3 * d, false, false};
}

}  // namespace din_kernels::cuda
