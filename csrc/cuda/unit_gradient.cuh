// The steps of a tile's backward pass, from dw down to the gradients of rows, queries and weights.
#pragma once

#include "block_scan.cuh"
#include "unit_backward_plan.h"
#include "unit_tile.cuh"

namespace din_kernels::cuda {

template <typename S, bool kFolded>
struct BackwardCall : UnitCall<S, kFolded> {
    bool dice;
    BackwardPlan plan;
    Global<const uint32_t> keys_transposed, products_transposed;  // packed [H1, D]; null where folded
    Global<const uint32_t> matrices_transposed;                   // packed A_i^T [chunk, H1, D]; null where not
    Global<const uint32_t> transposed[kMaxHidden];                // packed [H, H before]
    Global<const float> statistics;                               // [2, padded_sum] or null: means of du, du u
    Global<const S> grad_pooled;                                  // [Q, D]
    Global<const float> grad_pair_weights;                        // [total_pairs] or null
    Global<const int64_t> pair_first;                             // [Q + 1]: pairs before each candidate
    Global<const double> logsumexp;                               // [Q], softmax
    Global<const float> dots;                                     // [Q], softmax
    Global<S> grad_rows;                                          // [M, D] or null
    Global<float> grad_rows_sum;                                  // [M, D] or null: where candidates share rows
    Global<float> grad_pairs;                                     // [pairs, D] or null
    Global<float> partials;                                       // [blocks, 2, query_width]
    Global<float> constants_gradient;                             // [Q, padded H1]
    Global<float> query_gradient;                                 // [Q, D], or folded dA_i [chunk, padded H1, D]
    Global<float> gradients, columns;                             // [blocks, ...]
};

// The block's sum of the weights' gradients [gradient_size], in shared memory or in the workspace.
template <typename S, bool kFolded>
struct GradientSum {
    const BackwardCall<S, kFolded>& call;

    __device__ float operator[](int64_t at) const {
        return call.plan.gradient_in_shared ? shared()[int(at)] : call.gradients[first() + at];
    }
    __device__ void store(int64_t at, float value) const {
        if (call.plan.gradient_in_shared)
            shared().store(int(at), value);
        else
            call.gradients.store(first() + at, value);
    }
    __device__ void to_workspace() const {
        if (call.plan.gradient_in_shared)
            for (int64_t e = threadIdx.x; e < call.plan.gradient_size; e += blockDim.x)
                call.gradients.store(first() + e, shared()[int(e)]);
    }
    // Zeros, or what the chunk before left in the workspace.
    __device__ void start() const {
        for (int64_t e = threadIdx.x; e < call.plan.gradient_size; e += blockDim.x)
            store(e, call.resume ? call.gradients[first() + e] : 0.0f);
    }

 private:
    __device__ int64_t first() const { return int64_t(blockIdx.x) * call.plan.gradient_size; }
    __device__ Shared<float> shared() const {
        return Shared<float>(uint32_t(call.plan.gradient), int(call.plan.gradient_size));
    }
};

// Sums over a candidate's rows of dz1 and, by q * k, of k (dz1 Wp), like Pooling of the forward: every thread owns
// columns. Folded, the second is the gradient of A_i in the front of GradientSum.
template <typename S, bool kFolded>
struct QuerySums {
    const BackwardCall<S, kFolded>& call;
    const Range& range;
    int64_t candidate = -1;

    __device__ void finish(const Shared<float>& sums) const {
        if (candidate < 0) return;
        const int columns = call.weights.sizes.padded[0], rest = call.plan.query_width - columns;
        const Slots& slots = call.loader.pairs.slots;
        const bool began = range.begins(slots, candidate), ended = range.ends(slots, candidate);
        const int64_t partial = (2 * int64_t(blockIdx.x) + (began ? 1 : 0)) * call.plan.query_width;
        const int64_t second = (kFolded ? candidate - slots.begin : candidate) * rest;
        const GradientSum<S, kFolded> gradient{call};
        for (int at = int(threadIdx.x); at < call.plan.query_width; at += int(blockDim.x)) {
            const float sum = kFolded && at >= columns ? gradient[at - columns] : sums[at];
            if (!began || !ended)
                call.partials.store(partial + at, sum);
            else if (at < columns)
                call.constants_gradient.store(candidate * columns + at, sum);
            else
                call.query_gradient.store(second + at - columns, sum);
        }
    }

    // Folded, before the gradient of a tile is added: the tile's candidate becomes the present one.
    __device__ void open(int64_t mine, const Shared<float>& sums) {
        if (mine == candidate) return;
        finish(sums);
        __syncthreads();
        candidate = mine;
        const int columns = call.weights.sizes.padded[0];
        const GradientSum<S, kFolded> gradient{call};
        for (int at = int(threadIdx.x); at < call.plan.query_width; at += int(blockDim.x)) {
            if (at < columns)
                sums.store(at, 0.0f);
            else
                gradient.store(at - columns, 0.0f);
        }
        __syncthreads();
    }

    __device__ void add(const Shared<int>& candidates, const Shared<float>& dz, const Shared<float>& contribution,
                        const Shared<float>& sums, int64_t slot, int valid) {
        const int columns = call.weights.sizes.padded[0], dim = call.weights.sizes.dim;
        for (int first = 0; first < valid;) {
            const int mine = candidates[first], last = call.loader.pairs.slots.last_row(mine, slot, valid);
            const bool fresh = mine != candidate;
            if (fresh) finish(sums);
            candidate = mine;
            for (int at = int(threadIdx.x); at < (kFolded ? columns : columns + dim); at += int(blockDim.x)) {
                float total = fresh ? 0.0f : sums[at];
                for (int row = first; row < last; ++row)
                    total += at < columns ? dz[row * (columns + 1) + at] : contribution[row * (dim + 1) + at - columns];
                sums.store(at, total);
            }
            first = last;
        }
    }
};

// The shared arrays of a block that only backward has.
struct BackwardShared {
    const BackwardPlan& plan;

    __device__ Shared<float> floats(int64_t offset, int64_t size) const {
        return Shared<float>(uint32_t(offset), int(size));
    }
    __device__ Shared<float> z(int layer) const {
        return floats(plan.z[layer], plan.tile.rows * (plan.sizes.padded[layer] + 1));
    }
    template <typename S>
    __device__ Shared<S> dz(int layer) const {
        return Shared<S>(uint32_t(plan.dz[layer % 2]), plan.tile.rows * plan.dz_stride);
    }
    __device__ Shared<float> weight() const { return floats(plan.weight, plan.tile.rows); }
    __device__ Shared<float> ds() const { return floats(plan.ds, plan.tile.rows); }
    __device__ Shared<float> contribution() const {
        return floats(plan.contribution, plan.sizes.folded ? 0 : plan.tile.rows * (plan.sizes.dim + 1));
    }
    __device__ Shared<float> scratch() const {
        return floats(plan.scratch, kColumnSums * plan.tile.warps * plan.widest);
    }
    __device__ Shared<float> column_sums() const { return floats(plan.column_sums, plan.columns_size); }
    __device__ Shared<float> query_sums() const {
        return floats(plan.query_sums, plan.sizes.folded ? plan.sizes.padded[0] : plan.query_width);
    }
};

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

// dz of a layer for the warp's rows: in place of z, and narrowed for the products. Leaves the warp's column sums in
// scratch [kColumnSums, warps, widest].
template <typename Math, bool kFolded>
__device__ void layer_gradient(const BackwardCall<typename Math::Storage, kFolded>& call, const BackwardShared& shared,
                               int layer, const Shared<int>& candidates) {
    using S = typename Math::Storage;
    constexpr bool kApproximate = sizeof(S) == 2;
    const UnitWeights& weights = call.weights;
    const UnitSizes& sizes = weights.sizes;
    const BackwardPlan& plan = call.plan;
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, first_row = warp * kRowsPerWarp;
    const bool last = layer == sizes.layers - 1;
    const int tiles = sizes.padded[layer] / 8, padded = sizes.padded[layer];
    const Shared<float> z = shared.z(layer), scratch = shared.scratch(), ds = shared.ds();
    const Shared<S> dz = shared.dz<S>(layer);
    const Activation activation = weights.activation;
    const bool wanted[kColumnSums] = {true, activation == Activation::kPrelu || call.dice, call.dice, call.dice, last};
    for (int group = 0; group < tiles; group += kTiles) {
        Sums sums = {};
        if (!last)
            Math::multiply(sums, shared.dz<S>(layer + 1), first_row * plan.dz_stride, plan.dz_stride,
                           (sizes.padded[layer + 1] + Math::kDepth - 1) / Math::kDepth, call.transposed[layer + 1],
                           group, tiles);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            if (group + t >= tiles) break;
            float columns[kColumnSums][2] = {};
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const LanePosition at = lane_position(group + t, r);
                const bool there = candidates[at.row] >= 0 && at.column < sizes.width[layer];
                const float value = z[at.row * (padded + 1) + at.column];
                const ChannelParams channel = weights.channel(layer, at.column);
                const float g = last ? ds[at.row] * weights.output[at.column] : sums[t][r];
                Derivative d = derive<kApproximate>(activation, value, g, channel);
                if (call.statistics) {
                    const int c = sizes.padded_first[layer] + at.column;
                    d.dz -= channel.rstd * (call.statistics[c] + d.u * call.statistics[sizes.padded_sum + c]);
                }
                if (!there) d = Derivative{};
                if (last && there)
                    columns[4][r % 2] =
                        fmaf(ds[at.row], activate<kApproximate>(activation, value, channel), columns[4][r % 2]);
                columns[0][r % 2] += d.dz, columns[1][r % 2] += d.dparam;
                columns[2][r % 2] += d.du, columns[3][r % 2] += d.du * d.u;
                z.store(at.row * (padded + 1) + at.column, d.dz);
                dz.store(at.row * plan.dz_stride + at.column, narrow<S>(d.dz));
            }
#pragma unroll
            for (int which = 0; which < kColumnSums; ++which) {
                if (!wanted[which]) continue;
                for (int c = 0; c < 2; ++c) {
                    float sum = columns[which][c];
                    for (int flip = 4; flip < 32; flip *= 2) sum += __shfl_xor_sync(~0u, sum, flip);
                    if (lane < 4)
                        scratch.store((which * plan.tile.warps + warp) * plan.widest + (group + t) * 8 + 2 * lane + c,
                                      sum);
                }
            }
        }
    }
    // The product reads whole steps: what a wider layer left there must not meet zero weights as NaN.
    const int deep = (padded + Math::kDepth - 1) / Math::kDepth * Math::kDepth;
    for (int at = lane; at < kRowsPerWarp * (deep - padded); at += 32)
        dz.store((first_row + at / (deep - padded)) * plan.dz_stride + padded + at % (deep - padded), S{});
    __syncthreads();
    for (int column = int(threadIdx.x); column < padded; column += int(blockDim.x))
        for (int which = 0; which < kColumnSums; ++which) {
            if (!wanted[which]) continue;
            float sum = 0.0f;
            for (int w = 0; w < plan.tile.warps; ++w)
                sum += scratch[(which * plan.tile.warps + w) * plan.widest + column];
            const int to = which * sizes.padded_sum + sizes.padded_first[layer] + column;
            shared.column_sums().store(to, shared.column_sums()[to] + sum);
        }
}

// gradient [n_end, column_end] (from `first` on) += left^T right over the tile's rows; every warp takes some of the
// 16 x 40 pieces, always the same ones.
template <typename Math, bool kFolded>
__device__ void add_gradient(const BackwardCall<typename Math::Storage, kFolded>& call,
                             RowProduct<typename Math::Storage> product, int64_t first) {
    const BackwardPlan& plan = call.plan;
    const GradientSum<typename Math::Storage, kFolded> gradient{call};
    const int warp = int(threadIdx.x) / 32, columns = product.column_end;
    int piece = 0;
    for (product.n = 0; product.n < product.n_end; product.n += 16)
        for (product.column = 0; product.column < columns; product.column += 8 * kTiles, ++piece) {
            if (piece % plan.tile.warps != warp) continue;
            Sums sums = {};
            Math::multiply_rows(sums, product, plan.tile.rows);
#pragma unroll
            for (int t = 0; t < kTiles; ++t)
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    const LanePosition at = lane_position(t, r);
                    const int n = product.n + at.row - warp * kRowsPerWarp, column = product.column + at.column;
                    if (n >= product.n_end || column >= columns) continue;
                    const int64_t to = first + int64_t(n) * columns + column;
                    gradient.store(to, gradient[to] + sums[t][r]);
                }
        }
}

// dk to grad_rows and, flat, k (dz1 Wp) to contribution, of the warp's rows.
template <typename Math, bool kFolded>
__device__ void row_gradient(const BackwardCall<typename Math::Storage, kFolded>& call, const BackwardShared& shared,
                             const Shared<typename Math::Storage>& keys, const Shared<int>& candidates,
                             const Shared<int64_t>& source_rows, int64_t slot) {
    using S = typename Math::Storage;
    const UnitSizes& sizes = call.weights.sizes;
    const int first = int(threadIdx.x) / 32 * kRowsPerWarp * call.plan.dz_stride, dim = sizes.dim;
    const int tiles = call.plan.dim8 / 8, steps = (sizes.padded[0] + Math::kDepth - 1) / Math::kDepth;
    const Shared<S> dz = shared.dz<S>(0);
    const Slots& slots = call.loader.pairs.slots;
    const int64_t words = call.plan.fold.transposed_words;
    for (int group = 0; group < tiles; group += kTiles) {
        Sums by_key = {}, by_product = {};
        if constexpr (kFolded)
            Math::multiply(by_key, dz, first, call.plan.dz_stride, steps,
                           call.matrices_transposed.part((candidates[0] - slots.begin) * words, words), group, tiles);
        else
            Math::multiply(by_key, dz, first, call.plan.dz_stride, steps, call.keys_transposed, group, tiles);
        if constexpr (!kFolded)
            Math::multiply(by_product, dz, first, call.plan.dz_stride, steps, call.products_transposed, group, tiles);
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const LanePosition at = lane_position(group + t, r);
                if (at.column >= dim) continue;
                const int64_t i = candidates[at.row];
                float contribution = 0.0f;
                if (i >= 0) {
                    const float g = widen(call.grad_pooled[i * dim + at.column]);
                    float dk = shared.weight()[at.row] * g + by_key[t][r];
                    if constexpr (!kFolded) {
                        dk += widen(call.query[i * dim + at.column]) * by_product[t][r];
                        contribution = by_product[t][r] * widen(keys[at.row * sizes.stride[0] + at.column]);
                    }
                    const int64_t to = source_rows[at.row] * dim + at.column;
                    if (call.grad_rows)
                        call.grad_rows.store(to, narrow<S>(dk));
                    else if (call.grad_pairs)
                        call.grad_pairs.store((call.pair_first[i] + slot + at.row - slots.before(i)) * dim + at.column,
                                              dk);
                    else if (call.grad_rows_sum)
                        call.grad_rows_sum.atomic_add(to, dk);
                }
                if constexpr (!kFolded) shared.contribution().store(at.row * (dim + 1) + at.column, contribution);
            }
    }
}

}  // namespace din_kernels::cuda
