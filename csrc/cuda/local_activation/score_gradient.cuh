// The first step of a tile's backward pass: from dw to ds.
#pragma once

#include "common/block_scan.cuh"
#include "local_activation/backward_call.cuh"

namespace din_kernels::cuda {

// Sums 2 kCount values over the lanes; lane l gets the sum of values[l % (2 kCount)] in values[0]. Lanes halve the
// values that they hold at every exchange, so that 16 values take 16 exchanges in place of 5 each:
//
//   lanes 0 .. 7    v0 .. v15  ->  v0 .. v7   ->  v0 .. v3   ->  ...      (with lane ^ 8, then ^ 4, ^ 2, ^ 1)
//   lanes 8 .. 15   v0 .. v15  ->  v8 .. v15  ->  ...
template <int kCount, int kValues>
__device__ void sum_values(float (&values)[kValues]) {
    if constexpr (kCount == 0) {
        for (int flip = kValues; flip < 32; flip *= 2) values[0] += __shfl_xor_sync(~0u, values[0], flip);
    } else {
        const bool upper = int(threadIdx.x) & kCount;
#pragma unroll
        for (int v = 0; v < kCount; ++v) {
            const float mine = upper ? values[v + kCount] : values[v], other = upper ? values[v] : values[v + kCount];
            values[v] = mine + __shfl_xor_sync(~0u, other, kCount);
        }
        sum_values<kCount / 2>(values);
    }
}

// w and ds of the warp's rows, 0 for rows without a weight. Under softmax ds comes in place of the score, where
// SoftmaxResidual takes it.
template <typename S, bool kFolded>
__device__ void weigh_rows(const BackwardCall<S, kFolded>& call, const BackwardShared& shared, const Shared<S>& history,
                           const Shared<int>& candidates, const Shared<int64_t>& source_rows,
                           const Shared<float>& score, int64_t slot) {
    const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * kRowsPerWarp;
    const int dim = call.weights.sizes.dim, stride = call.weights.sizes.stride[0];
    // dw = <g, k> of all rows, the lanes side by side along a row.
    float dws[kRowsPerWarp] = {};
    const auto multiply = [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        for (int d = kWidth * lane; d < dim; d += kWidth * 32)
#pragma unroll
            for (int row = 0; row < kRowsPerWarp; ++row) {
                const int64_t i = candidates[first + row];
                if (i < 0) continue;
                const auto g = call.grad_pooled.template load<kWidth>(i * dim + d);
                const auto k = history.template load<kWidth>((first + row) * stride + d);
                for (int e = 0; e < kWidth; ++e) dws[row] = fmaf(widen(g.at[e]), widen(k.at[e]), dws[row]);
            }
    };
    if (call.by_two)
        multiply(std::integral_constant<int, 2>{});
    else
        multiply(std::integral_constant<int, 1>{});
    sum_values<kRowsPerWarp / 2>(dws);
    float dw = dws[0];
    // w and ds, a lane per row.
    if (lane < kRowsPerWarp) {
        const int row = first + lane;
        const int64_t i = candidates[row];
        float w = 0.0f, ds = 0.0f;
        if (i >= 0 && call.loader.pairs.has_weight(source_rows[row])) {
            if (call.grad_pair_weights) {
                const int64_t position = slot + row - call.loader.pairs.slots.before(i);
                dw += call.grad_pair_weights[call.pair_begin[i] + position];
            }
            w = call.softmax ? expf(float(score[row] - call.logsumexp[i])) : score[row];
            ds = call.scale * (call.softmax ? w * (dw - call.dots[i]) : dw);
        }
        shared.weight().store(row, w);
        (call.softmax ? score : shared.ds()).store(row, ds);
    }
    __syncwarp();
}

// Over a candidate's rows sum_t w_t (dw_t - dot) is 0. But dot is made of pooled as forward rounded it to S, and its
// error would add up in the gradients of the last layer, sums over terms that cancel. So the candidate's last tile
// takes off what the sum is in place of 0, in proportion to w: where a history lies in one tile, that gives the exact
// dot. A history that several blocks share is left alone: no block has the sum, and a pooled row of so many k is small
// beside each of them, as is its rounding.
template <typename S, bool kFolded>
struct SoftmaxResidual {
    const BackwardCall<S, kFolded>& call;
    const Range& range;
    int64_t candidate = -1;
    float sum = 0;  // of ds over the candidate's rows so far

    // ds [rows] from `rough` [rows], which all warps of the tile have written.
    __device__ void take(const Shared<int>& candidates, const Shared<float>& weight, const Shared<float>& rough,
                         const Shared<float>& ds, int64_t slot, int valid) {
        __syncthreads();
        const Slots& slots = call.loader.pairs.slots;
        for (int first = 0; first < valid;) {
            const int mine = candidates[first], last = slots.last_row(mine, slot, valid);
            float weights = 0.0f;
            if (mine != candidate) candidate = mine, sum = 0.0f;
            for (int row = first; row < last; ++row) sum += rough[row], weights += weight[row];
            const bool takes = weights > 0.0f && range.begins(slots, mine) && range.ends(slots, mine) &&
                               slots.before(mine + 1) <= slot + call.plan.tile.rows;
            // w / weights first: weights can be as small as a denormal, and sum / weights infinite.
            for (int row = first + int(threadIdx.x); row < last; row += int(blockDim.x))
                ds.store(row, rough[row] - (takes ? weight[row] / weights * sum : 0.0f));
            first = last;
        }
        for (int row = valid + int(threadIdx.x); row < call.plan.tile.rows; row += int(blockDim.x)) ds.store(row, 0.0f);
        __syncthreads();
    }
};

}  // namespace din_kernels::cuda
