// The first layer's weight and rows of candidates, as fold.cu and unfold.cu read them.
#pragma once

#include "common/typed.cuh"
#include "local_activation/pack.h"
#include "local_activation/products.cuh"

namespace din_kernels::cuda {

// Candidates of a block, 16 per warp: a warp's products have 16 rows.
__device__ inline int candidates_per_block() { return int(blockDim.x) / 32 * kRowsPerWarp; }

// W1 [H1, columns.total], padded with zeros.
struct FirstWeight {
    FeatureColumns columns;
    TypedArray weight;
    int width, dim;

    __device__ bool inside(int h, int d) const { return h < width && d < dim; }
    __device__ float at(int h, int64_t column) const { return typed_at(weight, h * columns.total + column); }
    // (Wk - Wd)[h, d]
    __device__ float weight_k(int h, int d) const {
        if (!inside(h, d)) return 0.0f;
        const float key = at(h, columns.weight_k + d);
        return columns.has_difference() ? key - at(h, columns.weight_difference + d) : key;
    }
    __device__ float weight_qk(int h, int d) const { return inside(h, d) ? at(h, columns.weight_qk + d) : 0.0f; }
};

inline FirstWeight first_weight(const LocalActivation& call, const Sizes& sizes) {
    return {feature_columns(call), call.layers[0].weight, sizes.width[0], sizes.dim};
}

// Loads a warp's 16 rows from value(row, column), narrowed, with zeros up to the product's depth.
template <typename Math, typename Value>
__device__ void load_rows(const Shared<typename Math::Storage>& tile, const Sizes& sizes, const Value& value) {
    using S = typename Math::Storage;
    const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * kRowsPerWarp, columns = sizes.dim_padded;
    for (int at = lane; at < kRowsPerWarp * columns; at += 32) {
        const int row = first + at / columns, column = at % columns;
        tile.store(row * sizes.stride[0] + column, column < sizes.dim ? narrow<S>(value(row, column)) : S{});
    }
    __syncwarp();
}

}  // namespace din_kernels::cuda
