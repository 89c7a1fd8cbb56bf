// The first step of a tile's backward pass: from dw to ds.
#pragma once

#include "block_scan.cuh"
#include "unit_backward_call.cuh"

namespace din_kernels::cuda {

// w and ds of the warp's rows; 0 for rows that only count in Dice's statistics. Under softmax ds comes in place of the
// score, for SoftmaxResidual.
template <typename S, bool kFolded>
__device__ void weigh_rows(const BackwardCall<S, kFolded>& call, const BackwardShared& shared, const Shared<S>& keys,
                           const Shared<int>& candidates, const Shared<int64_t>& source_rows,
                           const Shared<float>& score, int64_t slot) {
    const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * kRowsPerWarp;
    const int dim = call.weights.sizes.dim, stride = call.weights.sizes.stride[0];
    for (int row = first; row < first + kRowsPerWarp; ++row) {
        const int64_t i = candidates[row];
        float dw = 0.0f;
        if (i >= 0)
            for (int d = lane; d < dim; d += 32)
                dw = fmaf(widen(call.grad_pooled[i * dim + d]), widen(keys[row * stride + d]), dw);
        dw = warp_sum(dw);
        if (lane != 0) continue;
        float w = 0.0f, ds = 0.0f;
        if (i >= 0 && call.loader.pairs.counts(source_rows[row])) {
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
// takes what the sum is, in proportion to w: where a history lies in one tile, that is the exact dot. A history that
// several blocks share is left alone: no block has the sum, and a pooled row of so many k is small beside each, as is
// its rounding.
template <typename S, bool kFolded>
struct SoftmaxResidual {
    const BackwardCall<S, kFolded>& call;
    const Range& range;
    int64_t candidate = -1;
    float sum = 0;  // of ds over the candidate's rows so far

    // ds [rows] from `rough` [rows], all that the tile's warps left there.
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
