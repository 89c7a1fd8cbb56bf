// The steps of a tile's backward pass from ds down to the gradients of rows, queries and weights.
#pragma once

#include "local_activation/backward_call.cuh"

namespace din_kernels::cuda {

// The block's sum of the weights' gradients [gradient_size], in shared memory or in the workspace.
template <typename S, bool kFolded>
struct GradientSum {
    const BackwardCall<S, kFolded>& call;

    template <int kCount>
    __device__ Vector<float, kCount> load(int64_t at) const {
        return call.plan.gradient_in_shared ? shared().template load<kCount>(int(at))
                                            : call.gradients.template load<kCount>(first() + at);
    }
    template <int kCount>
    __device__ void store(int64_t at, Vector<float, kCount> value) const {
        if (call.plan.gradient_in_shared)
            shared().template store<kCount>(int(at), value);
        else
            call.gradients.template store<kCount>(first() + at, value);
    }
    __device__ void to_workspace() const {
        if (call.plan.gradient_in_shared)
            for (int64_t e = threadIdx.x; e < call.plan.gradient_size; e += blockDim.x)
                call.gradients.store(first() + e, shared()[int(e)]);
    }
    // Zeros, or what the chunk before left in the workspace.
    __device__ void start() const {
        for (int64_t e = threadIdx.x; e < call.plan.gradient_size; e += blockDim.x)
            store<1>(e, {{call.resume ? call.gradients[first() + e] : 0.0f}});
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
        const auto write = [&](int at, float sum) {
            if (!began || !ended)
                call.partials.store(partial + at, sum);
            else if (at < columns)
                call.constants_gradient.store(candidate * columns + at, sum);
            else
                call.query_gradient.store((kFolded ? candidate - slots.begin : candidate) * rest + at - columns, sum);
        };
        const int held = kFolded ? columns : call.plan.query_width;
        for (int at = int(threadIdx.x); at < held; at += int(blockDim.x)) write(at, sums[at]);
        if (!kFolded) return;
        const GradientSum<S, kFolded> gradient{call};
        const int dim = call.weights.sizes.dim;
        for (int n = int(threadIdx.x) / 32; n < columns; n += call.plan.tile.warps)
            for (int d = int(threadIdx.x) % 32; d < dim; d += 32)
                write(columns + n * dim + d,
                      gradient.template load<1>(int64_t(n) * call.plan.gradient_stride[0] + d).at[0]);
    }

    // Folded, before the gradient of a tile is added: the tile's candidate becomes the present one.
    __device__ void open(int64_t mine, const Shared<float>& sums) {
        if (mine == candidate) return;
        finish(sums);
        __syncthreads();
        candidate = mine;
        const int columns = call.weights.sizes.padded[0];
        const GradientSum<S, kFolded> gradient{call};
        for (int at = int(threadIdx.x); at < columns; at += int(blockDim.x)) sums.store(at, 0.0f);
        for (int at = int(threadIdx.x); at < columns * call.plan.gradient_stride[0]; at += int(blockDim.x))
            gradient.template store<1>(at, {{0.0f}});
        __syncthreads();
    }

    __device__ void add(const Shared<int>& candidates, const Shared<float>& dz, const Shared<float>& contribution,
                        const Shared<float>& sums, int64_t slot, int valid) {
        const int columns = call.weights.sizes.padded[0], dim = call.weights.sizes.dim;
        const int dz_stride = call.weights.sizes.z_stride[0], stride = call.plan.contribution_stride;
        for (int first = 0; first < valid;) {
            const int mine = candidates[first], last = call.loader.pairs.slots.last_row(mine, slot, valid);
            const bool fresh = mine != candidate;
            if (fresh) finish(sums);
            candidate = mine;
            for (int at = int(threadIdx.x); at < (kFolded ? columns : columns + dim); at += int(blockDim.x)) {
                float total = fresh ? 0.0f : sums[at];
                for (int row = first; row < last; ++row)
                    total += at < columns ? dz[row * dz_stride + at] : contribution[row * stride + at - columns];
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
    const int padded = sizes.padded[layer], z_stride = sizes.z_stride[layer];
    const Shared<float> z = shared.z(layer), scratch = shared.scratch(), ds = shared.ds();
    const Shared<S> dz = shared.dz<S>(layer);
    const Activation activation = weights.activation;
    const bool wanted[kColumnSums] = {true, activation == Activation::kPrelu || call.dice, call.dice, call.dice, last};
    const int row = lane_position(0, 0).row;
    const bool pair[2] = {candidates[row] >= 0, candidates[row + 8] >= 0};
    const float row_ds[2] = {ds[row], ds[row + 8]};
    for_groups(padded / 8, [&](int group, auto count) {
        constexpr int kCount = decltype(count)::value;
        Sums<kCount> sums = {};
        if (!last)
            Math::multiply(sums, shared.dz<S>(layer + 1), first_row * plan.dz_stride, plan.dz_stride,
                           (sizes.padded[layer + 1] + Math::kDepth - 1) / Math::kDepth, call.transposed[layer + 1],
                           group);
#pragma unroll
        for (int t = 0; t < kCount; ++t) {
            const int column = lane_position(group + t, 0).column, channel = sizes.padded_first[layer] + column;
            const ChannelPair channels = weights.channels(channel);
            Vector<float, 2> value[2], output{};
            for (int half = 0; half < 2; ++half) value[half] = z.template load<2>((row + 8 * half) * z_stride + column);
            if (last) output = weights.output.template load<2>(column);
            Derivative d[4];
            float h[4];
            with_activation(activation, [&](auto kind) {
                constexpr Activation kKind = decltype(kind)::value;
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    const float x = value[r / 2].at[r % 2];
                    const float g = last ? row_ds[r / 2] * output.at[r % 2] : sums[t][r];
                    d[r] = derive<kApproximate>(kKind, x, g, channels.at[r % 2]);
                    h[r] = activate<kApproximate>(kKind, x, channels.at[r % 2]);
                }
            });
            if (call.statistics) {
                const auto du = call.statistics.template load<2>(channel);
                const auto du_u = call.statistics.template load<2>(sizes.padded_sum + channel);
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    d[r].dz -= channels.at[r % 2].rstd * (du.at[r % 2] + d[r].u * du_u.at[r % 2]);
            }
            float columns[kColumnSums][2] = {};
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                if (!pair[r / 2] || column + r % 2 >= sizes.width[layer]) d[r] = Derivative{}, h[r] = 0.0f;
                columns[0][r % 2] += d[r].dz, columns[1][r % 2] += d[r].dparam;
                columns[2][r % 2] += d[r].du, columns[3][r % 2] += d[r].du * d[r].u;
                columns[4][r % 2] = fmaf(row_ds[r / 2], h[r], columns[4][r % 2]);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float left = d[2 * half].dz, right = d[2 * half + 1].dz;
                z.template store<2>((row + 8 * half) * z_stride + column, {{left, right}});
                dz.template store<2>((row + 8 * half) * plan.dz_stride + column, narrow_pair<S>(left, right));
            }
#pragma unroll
            for (int which = 0; which < kColumnSums; ++which) {
                if (!wanted[which]) continue;
                Vector<float, 2> sum{{columns[which][0], columns[which][1]}};
                for (int flip = 4; flip < 32; flip *= 2)
                    for (float& each : sum.at) each += __shfl_xor_sync(~0u, each, flip);
                if (lane < 4) scratch.template store<2>((which * plan.tile.warps + warp) * plan.widest + column, sum);
            }
        }
    });
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

// gradient [n_end, stride] (from `first` on) += left^T right over the tile's rows; every warp takes some of the 16 x 40
// pieces, always the same ones.
template <typename Math, bool kFolded>
__device__ void add_gradient(const BackwardCall<typename Math::Storage, kFolded>& call,
                             RowProduct<typename Math::Storage> product, int64_t first, int stride) {
    const BackwardPlan& plan = call.plan;
    const GradientSum<typename Math::Storage, kFolded> gradient{call};
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    int piece = 0;
    for (product.n = 0; product.n < product.n_end; product.n += 16)
        for_groups((product.column_end + 7) / 8, [&](int group, auto count) {
            constexpr int kCount = decltype(count)::value;
            // One group further for every 16 of n: D = 128 has four groups, the last of a single tile.
            if ((piece++ + product.n / 16) % plan.tile.warps != warp) return;
            product.column = 8 * group;
            Sums<kCount> sums = {};
            Math::multiply_rows(sums, product, plan.tile.rows);
#pragma unroll
            for (int t = 0; t < kCount; ++t)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    if (product.n + 8 * half >= product.n_end) continue;
                    const int64_t to =
                        first + (product.n + lane / 4 + 8 * half) * stride + lane_position(group + t, half).column;
                    auto sum = gradient.template load<2>(to);
                    sum.at[0] += sums[t][2 * half], sum.at[1] += sums[t][2 * half + 1];
                    gradient.template store<2>(to, sum);
                }
        });
}

// dk to grad_rows and, flat, k (dz1 Wp) to contribution, of the warp's rows.
template <typename Math, bool kFolded>
__device__ void row_gradient(const BackwardCall<typename Math::Storage, kFolded>& call, const BackwardShared& shared,
                             const Shared<typename Math::Storage>& keys, const Shared<int>& candidates,
                             const Shared<int64_t>& source_rows, int64_t slot) {
    using S = typename Math::Storage;
    const UnitSizes& sizes = call.weights.sizes;
    const int first = int(threadIdx.x) / 32 * kRowsPerWarp * call.plan.dz_stride, dim = sizes.dim;
    const int steps = (sizes.padded[0] + Math::kDepth - 1) / Math::kDepth;
    const Shared<S> dz = shared.dz<S>(0);
    const Shared<float> contribution = shared.contribution();
    const Slots& slots = call.loader.pairs.slots;
    const int64_t words = call.plan.fold.transposed_words;
    // Of the lane's two rows: candidate, weight, and where its gradient goes.
    int64_t candidate[2], to[2];
    float weight[2];
    for (int half = 0; half < 2; ++half) {
        const int row = lane_position(0, half).row;
        const int64_t i = candidates[row];
        candidate[half] = i, weight[half] = shared.weight()[row];
        if (i >= 0 && call.grad_pairs)
            to[half] = call.pair_first[i] + slot + row - slots.before(i);
        else
            to[half] = source_rows[row];
    }
    for_groups(call.plan.dim8 / 8, [&](int group, auto count) {
        constexpr int kCount = decltype(count)::value;
        Sums<kCount> by_key = {}, by_product = {};
        if constexpr (kFolded) {
            Math::multiply(by_key, dz, first, call.plan.dz_stride, steps,
                           call.matrices_transposed.part((candidates[0] - slots.begin) * words, words), group);
        } else {
            Math::multiply(by_key, dz, first, call.plan.dz_stride, steps, call.keys_transposed, group);
            Math::multiply(by_product, dz, first, call.plan.dz_stride, steps, call.products_transposed, group);
        }
        // Columns `column` .. of a row, with the sums by k and by q * k.
        const auto finish = [&](int half, int column, const auto& key_sums, const auto& product_sums) {
            constexpr int kWidth = int(std::extent_v<std::remove_reference_t<decltype(key_sums.at)>>);
            if (column >= dim) return;
            const int row = lane_position(0, half).row;
            Vector<float, kWidth> contributions{};
            if (candidate[half] >= 0) {
                const auto g = call.grad_pooled.template load<kWidth>(candidate[half] * dim + column);
                Vector<float, kWidth> dk = key_sums;
#pragma unroll
                for (int c = 0; c < kWidth; ++c) dk.at[c] = fmaf(weight[half], widen(g.at[c]), dk.at[c]);
                if constexpr (!kFolded) {
                    const auto q = call.query.template load<kWidth>(candidate[half] * dim + column);
                    const auto k = keys.template load<kWidth>(row * sizes.stride[0] + column);
#pragma unroll
                    for (int c = 0; c < kWidth; ++c) {
                        dk.at[c] = fmaf(widen(q.at[c]), product_sums.at[c], dk.at[c]);
                        contributions.at[c] = product_sums.at[c] * widen(k.at[c]);
                    }
                }
                const int64_t cell = to[half] * dim + column;
                if (call.grad_rows)
                    call.grad_rows.template store<kWidth>(cell, narrow_vector<S>(dk));
                else if (call.grad_pairs)
                    call.grad_pairs.template store<kWidth>(cell, dk);
                else if (call.grad_rows_sum)
                    for (int c = 0; c < kWidth; ++c) call.grad_rows_sum.atomic_add(cell + c, dk.at[c]);
            }
            if constexpr (!kFolded)
                contribution.template store<kWidth>(row * call.plan.contribution_stride + column, contributions);
        };
#pragma unroll
        for (int t = 0; t < kCount; ++t)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int column = lane_position(group + t, half).column;
                const float (&of_key)[4] = by_key[t], (&of_product)[4] = by_product[t];
                const int left = 2 * half, right = left + 1;
                if (call.pairs) {
                    finish(half, column, Vector<float, 2>{{of_key[left], of_key[right]}},
                           Vector<float, 2>{{of_product[left], of_product[right]}});
                    continue;
                }
#pragma unroll 1
                for (int c = 0; c < 2; ++c)
                    finish(half, column + c, Vector<float, 1>{{c == 0 ? of_key[left] : of_key[right]}},
                           Vector<float, 1>{{c == 0 ? of_product[left] : of_product[right]}});
            }
    });
}

}  // namespace din_kernels::cuda
