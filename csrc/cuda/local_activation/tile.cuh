// Rows of a tile as its warps and lanes have them. A warp owns 16 rows of the tile from the rows themselves to their
// scores, so that the layers in between need no barrier. Lane 4 r + c has two of these rows, r and r + 8, and of every
// 8 columns the columns 2 c and 2 c + 1:
//
//   tile           of a warp      a tile of sums (8 columns)
//   rows  0 .. 15  warp 0         row r       sums[0], sums[1]
//   rows 16 .. 31  warp 1         row r + 8   sums[2], sums[3]
//   ...
#pragma once

#include "local_activation/products.cuh"
#include "local_activation/tile_loader.cuh"

namespace din_kernels::cuda {

// The place of two neighbouring sums of a lane, registers 2 half and 2 half + 1 of a tile of sums.
struct LanePosition {
    int row, column;  // row in the block's tile, column of the layer
};
__device__ inline LanePosition lane_position(int tile, int half) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    return {warp * kRowsPerWarp + lane / 4 + 8 * half, tile * 8 + 2 * (lane % 4)};
}

// Stores the lane's sums to fp32 rows `stride` apart, two neighbours at once.
template <int kCount>
__device__ void store_sums(const Sums<kCount>& sums, int group, const Shared<float>& to, int stride) {
#pragma unroll
    for (int t = 0; t < kCount; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const LanePosition at = lane_position(group + t, half);
            to.template store<2>(at.row * stride + at.column, {{sums[t][2 * half], sums[t][2 * half + 1]}});
        }
}

// products = q_i * k in the warp's rows, zeros where there is no pair.
template <typename S>
__device__ void multiply_queries(const Shared<S>& history, const Shared<S>& products, const Shared<int>& candidates,
                                 const Global<const S>& query, int dim, int stride, bool vector) {
    const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * kRowsPerWarp;
    const auto multiply = [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        const RowThreads split(dim / kWidth, 32);
        const int count = split.count(lane, kRowsPerWarp);
        for (int column = split.piece(lane) * kWidth; column < dim; column += split.pieces() * kWidth)
            for (int n = 0; n < count; n += RowThreads::kBatch) {
                int row[RowThreads::kBatch];
                Vector<S, kWidth> q[RowThreads::kBatch], both[RowThreads::kBatch];
#pragma unroll
                for (int b = 0; b < RowThreads::kBatch; ++b) {
                    // Behind its last row the thread takes the last one again.
                    row[b] = first + split.row(lane) + (n + b < count ? n + b : count - 1) * split.rows();
                    const int64_t i = candidates[row[b]];
                    q[b] = {};  // where there is no pair, k is zero too
                    if (i >= 0) q[b] = query.template load<kWidth>(i * dim + column);
                }
#pragma unroll
                for (int b = 0; b < RowThreads::kBatch; ++b)
                    both[b] = product(q[b], history.template load<kWidth>(row[b] * stride + column));
#pragma unroll
                for (int b = 0; b < RowThreads::kBatch; ++b)
                    products.template store<kWidth>(row[b] * stride + column, both[b]);
            }
    };
    if (vector)
        multiply(std::integral_constant<int, 4>{});
    else
        multiply(std::integral_constant<int, 1>{});
    __syncwarp();
}

}  // namespace din_kernels::cuda
