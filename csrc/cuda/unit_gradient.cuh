// The steps of a tile's backward pass from ds down to the gradients of rows, queries and weights.
#pragma once

#include "unit_backward_call.cuh"

namespace din_kernels::cuda {

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
