// From a tile's scores to weights and pooled rows, candidate by candidate, and Dice's statistics of a layer.
//
//   rows of a tile  | rest of candidate 4 |    5    |    6    |    front of 7     |
//   Pooling           goes on with 4 and    takes 5   takes 6   begins 7, whose sum
//                     writes its row        whole     whole     the next tile goes on with
//
// The running sum of a softmax is kept for the largest score so far (top): a larger one scales it down.
#pragma once

#include <cmath>

#include "common/moments.cuh"
#include "local_activation/forward_plan.h"
#include "local_activation/mlp.cuh"

namespace din_kernels::cuda {

template <typename S, bool kFolded>
struct ForwardCall : TileCall<S, kFolded> {
    ForwardPlan plan;
    Global<S> pooled;            // [Q, D]
    Global<double> logsumexp;    // [Q], softmax
    Global<float> normalizers;   // [Q, 2], softmax: maximum of the scores, 1 / sum of exp(score - maximum)
    Global<float> pair_weights;  // [total_pairs]
    Global<float> partials;      // [blocks, 2, D + 2]
    Global<float> statistics;    // [blocks, 2 padded_sum + 1]: means, sums of squared deviations, number of rows
};

// exp(score - top) under softmax. Rows without a weight score -inf, and top is -inf where no row has one.
__device__ inline float exp_below(float score, float top) { return score == -INFINITY ? 0.0f : expf(score - top); }
__device__ inline float share_of(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }
// The result is double: for scores near 1e4 a float would leave an error of 1e-3, by which backward would scale all
// weights.
__device__ inline double logsumexp_of(float top, float sum) { return double(top) + double(logf(sum)); }

// The pooled sum of the candidate whose rows the block is going through. Every thread holds the same scalars and owns
// columns threadIdx.x, threadIdx.x + blockDim.x, ... of the sum.
template <typename S, bool kFolded>
struct Pooling {
    const ForwardCall<S, kFolded>& call;
    const Range& range;
    int64_t candidate = -1;
    float top = 0, sum = 0;

    // The candidate's rows end here, or the block's do. The sum goes to pooled, or, where another block has some of the
    // candidate's rows, to one of the block's two partials, see schedule.cuh.
    __device__ void finish(const Shared<float>& pooled) const {
        if (candidate < 0) return;
        const int dim = call.weights.sizes.dim;
        const Slots& slots = call.loader.pairs.slots;
        const bool began = range.begins(slots, candidate), ended = range.ends(slots, candidate);
        const int64_t partial = (2 * int64_t(blockIdx.x) + (began ? 1 : 0)) * (dim + 2);
        const float share = call.softmax ? share_of(sum) : 1.0f;
        for (int d = int(threadIdx.x); d < dim; d += int(blockDim.x)) {
            if (began && ended)
                call.pooled.store(candidate * dim + d, narrow<S>(pooled[d] * share));
            else
                call.partials.store(partial + 2 + d, pooled[d]);
        }
        if (threadIdx.x != 0) return;
        if (began && ended) {
            if (!call.softmax) return;
            call.logsumexp.store(candidate, logsumexp_of(top, sum));
            call.normalizers.store(2 * candidate, top), call.normalizers.store(2 * candidate + 1, share);
        } else {
            call.partials.store(partial, top), call.partials.store(partial + 1, sum);
        }
    }

    // Adds the tile's rows, candidate by candidate. weight and segment_top come from weigh.
    __device__ void add(const Shared<int>& candidates, const Shared<float>& weight, const Shared<float>& segment_top,
                        const Shared<S>& history, const Shared<float>& pooled, int64_t slot, int valid) {
        const int dim = call.weights.sizes.dim, stride = call.weights.sizes.stride[0];
        for (int first = 0; first < valid;) {
            const int mine = candidates[first], last = call.loader.pairs.slots.last_row(mine, slot, valid);
            float keep = 1.0f;
            if (mine != candidate) {
                finish(pooled);
                candidate = mine, sum = 0.0f, keep = 0.0f;
            } else if (call.softmax) {
                keep = exp_below(top, segment_top[first]);
            }
            if (call.softmax) {
                top = segment_top[first];
                sum *= keep;
                for (int row = first; row < last; ++row) sum += weight[row];
            }
            for (int d = int(threadIdx.x); d < dim; d += int(blockDim.x)) {
                float total = keep == 0.0f ? 0.0f : pooled[d] * keep;
                for (int row = first; row < last; ++row)
                    total = fmaf(weight[row], widen(history[row * stride + d]), total);
                pooled.store(d, total);
            }
            first = last;
        }
    }
};

// weight [rows] = the score, or exp(score - segment_top); segment_top [rows] = the maximum of the candidate's scores up
// to the end of the tile, those of earlier tiles among them.
template <typename S, bool kFolded>
__device__ void weigh(const ForwardCall<S, kFolded>& call, const Pooling<S, kFolded>& pooling,
                      const Shared<int>& candidates, const Shared<float>& score, const Shared<float>& weight,
                      const Shared<float>& segment_top, int64_t slot, int valid) {
    const Slots& slots = call.loader.pairs.slots;
    for (int row = int(threadIdx.x); row < valid; row += int(blockDim.x)) {
        const int64_t mine = candidates[row];
        const float own = score[row];
        if (call.pair_begin) {
            const int64_t position = slot + row - slots.before(mine);
            call.pair_weights.store(call.pair_begin[mine] + position, own);
        }
        float top = own;
        if (call.softmax) {
            if (mine == pooling.candidate) top = fmaxf(top, pooling.top);
            const int last = slots.last_row(mine, slot, valid);
            for (int other = slots.first_row(mine, slot); other < last; ++other) top = fmaxf(top, score[other]);
            segment_top.store(row, top);
        }
        weight.store(row, call.softmax ? exp_below(own, top) : own);
    }
}

// Joins the rows of z [valid, stride] to the mean and the sum of squared deviations of the `before` rows so far.
__device__ inline void add_statistics(const Shared<float>& z, int stride, int columns, int valid, int64_t before,
                                      const Shared<float>& mean, const Shared<float>& square) {
    for (int column = int(threadIdx.x); column < columns; column += int(blockDim.x)) {
        Moments all;
        if (before) all = {float(before), mean[column], square[column]};
        for (int row = 0; row < valid; ++row) all.add(z[row * stride + column], 1.0f / float(before + row + 1));
        mean.store(column, all.mean), square.store(column, all.square);
    }
}

}  // namespace din_kernels::cuda
