// dz of a layer on a tile, and the sums of its columns, on the way from ds down to the first layer:
//
//            ds [rows]                             dz of the layer behind [rows, H behind], narrowed
//              |  times the output's weight          |  times the transposed weight (tensor cores)
//              v                                     v
//            dh of the last layer                  dh of the others         [rows, H]
//              +------------------+------------------+
//                                 |  act'(z), Dice's statistics, zeros where no pair and no channel is
//                                 v
//            z [rows, H] becomes dz, in fp32;  dz narrowed for the next product
//                                 |  sums over the lanes of a warp, then over the warps
//                                 v
//            scratch [kColumnSums, warps, H]   ->   column_sums [kColumnSums, H]
//
// A lane has rows r and r + 8 of its warp and two neighbouring columns of each tile of sums, as products.cuh pictures
// it.
#pragma once

#include "local_activation/backward_call.cuh"

namespace din_kernels::cuda {

template <typename Math, bool kFolded>
struct LayerGradient {
    using S = typename Math::Storage;
    const BackwardCall<S, kFolded>& call;
    const BackwardShared& shared;
    int layer, params;   // params of the activation
    int row;             // the upper one of the lane's two rows in the tile
    bool pair[2];        // whether they hold a pair
    float row_ds[2];     // their ds
    Shared<float> z;     // [rows, z_stride]
    Shared<S> narrowed;  // [rows, dz_stride]

    __device__ LayerGradient(const BackwardCall<S, kFolded>& call, const BackwardShared& shared, int layer,
                             const Shared<int>& candidates)
        : call(call),
          shared(shared),
          layer(layer),
          params(params_of(call.weights.activation)),
          row(lane_position(0, 0).row),
          pair{candidates[row] >= 0, candidates[row + 8] >= 0},
          row_ds{shared.ds()[row], shared.ds()[row + 8]},
          z(shared.z(layer)),
          narrowed(shared.dz<S>(layer)) {}

    // Every thread of the block calls it.
    __device__ __forceinline__ void run() const {
        const Sizes& sizes = call.weights.sizes;
        const BackwardPlan& plan = call.plan;
        for_groups(sizes.padded[layer] / 8, [&](int group, auto count) {
            constexpr int kCount = decltype(count)::value;
            Sums<kCount> dh = {};
            if (!last())
                Math::multiply(dh, shared.dz<S>(layer + 1), first_row() * plan.dz_stride, plan.dz_stride,
                               steps_of(sizes.padded[layer + 1]), call.transposed[layer + 1], group);
#pragma unroll
            for (int t = 0; t < kCount; ++t) {
                const int column = lane_position(group + t, 0).column;
                // The lane's four elements: rows row and row + 8, columns column and column + 1. As members of one
                // struct they cost 10 to 40 registers more on sm_90a.
                Derivative d[4];
                float h[4];
                differentiate(column, dh[t], d, h);
                store(column, d);
                sum_columns(column, d, h);
            }
        });
        clear_padding();
        __syncthreads();
        add_columns();
    }

 private:
    __device__ bool last() const { return layer == call.weights.sizes.layers - 1; }
    __device__ static int first_row() { return int(threadIdx.x) / 32 * kRowsPerWarp; }
    __device__ static int steps_of(int columns) { return (columns + Math::kDepth - 1) / Math::kDepth; }
    __device__ bool wanted(int which) const {
        if (which == kSumOfDz) return true;
        if (which == kSumOfDsH) return last();
        return which == kSumOfDparam ? params > 0 : params == kNormalizingParams;
    }

    // d and h from z and dh.
    __device__ __forceinline__ void differentiate(int column, const float (&dh)[4], Derivative (&d)[4],
                                                  float (&h)[4]) const {
        const MlpWeights& weights = call.weights;
        const int stride = weights.sizes.z_stride[layer], channel = weights.sizes.padded_first[layer] + column;
        const ChannelPair channels = weights.channels(channel);
        Vector<float, 2> value[2], output{};
        for (int half = 0; half < 2; ++half) value[half] = z.template load<2>((row + 8 * half) * stride + column);
        if (last()) output = weights.output.template load<2>(column);
        with_activation<sizeof(S) == 2>(weights.activation, [&](auto act) {
            using Act = decltype(act);
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const float x = value[r / 2].at[r % 2];
                const float g = last() ? row_ds[r / 2] * output.at[r % 2] : dh[r];
                d[r] = Act::derivative(x, g, channels.at[r % 2]);
                h[r] = Act::value(x, channels.at[r % 2]);
            }
        });
        if (call.statistics) through_statistics(channel, channels, d);
#pragma unroll
        for (int r = 0; r < 4; ++r)
            if (!pair[r / 2] || column + r % 2 >= weights.sizes.width[layer]) d[r] = Derivative{}, h[r] = 0.0f;
    }

    // Dice in training: dz -= rstd (mean of du + u mean of du u), as in batch norm.
    __device__ __forceinline__ void through_statistics(int channel, const ChannelPair& channels,
                                                       Derivative (&d)[4]) const {
        const auto du = call.statistics.template load<2>(channel);
        const auto du_u = call.statistics.template load<2>(call.weights.sizes.padded_sum + channel);
#pragma unroll
        for (int r = 0; r < 4; ++r) d[r].dz -= channels.at[r % 2].rstd * (du.at[r % 2] + d[r].u * du_u.at[r % 2]);
    }

    // dz in place of z, and narrowed for the products.
    __device__ __forceinline__ void store(int column, const Derivative (&d)[4]) const {
        const int stride = call.weights.sizes.z_stride[layer];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float left = d[2 * half].dz, right = d[2 * half + 1].dz;
            z.template store<2>((row + 8 * half) * stride + column, {{left, right}});
            narrowed.template store<2>((row + 8 * half) * call.plan.dz_stride + column, narrow_pair<S>(left, right));
        }
    }

    // The warp's sums of two columns to scratch.
    __device__ __forceinline__ void sum_columns(int column, const Derivative (&d)[4], const float (&h)[4]) const {
        const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
        float columns[kColumnSums][2] = {};
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            columns[kSumOfDz][r % 2] += d[r].dz, columns[kSumOfDparam][r % 2] += d[r].dparam;
            columns[kSumOfDu][r % 2] += d[r].du, columns[kSumOfDuU][r % 2] += d[r].du * d[r].u;
            columns[kSumOfDsH][r % 2] = fmaf(row_ds[r / 2], h[r], columns[kSumOfDsH][r % 2]);
        }
#pragma unroll
        for (int which = 0; which < kColumnSums; ++which) {
            if (!wanted(which)) continue;
            Vector<float, 2> sum{{columns[which][0], columns[which][1]}};
            for (int flip = 4; flip < 32; flip *= 2)
                for (float& each : sum.at) each += __shfl_xor_sync(~0u, each, flip);
            if (lane < 4)
                shared.scratch().template store<2>((which * call.plan.tile.warps + warp) * call.plan.widest + column,
                                                   sum);
        }
    }

    // Zeros behind the layer's columns up to a whole step of the product: a wider layer can have left there what a zero
    // weight must not meet as NaN.
    __device__ __forceinline__ void clear_padding() const {
        const int padded = call.weights.sizes.padded[layer], behind = steps_of(padded) * Math::kDepth - padded;
        for (int at = int(threadIdx.x) % 32; at < kRowsPerWarp * behind; at += 32)
            narrowed.store((first_row() + at / behind) * call.plan.dz_stride + padded + at % behind, S{});
    }

    // column_sums += the warps' sums, in their order.
    __device__ __forceinline__ void add_columns() const {
        const Sizes& sizes = call.weights.sizes;
        const BackwardPlan& plan = call.plan;
        const Shared<float> scratch = shared.scratch(), column_sums = shared.column_sums();
        for (int column = int(threadIdx.x); column < sizes.padded[layer]; column += int(blockDim.x))
            for (int which = 0; which < kColumnSums; ++which) {
                if (!wanted(which)) continue;
                float sum = 0.0f;
                for (int w = 0; w < plan.tile.warps; ++w)
                    sum += scratch[(which * plan.tile.warps + w) * plan.widest + column];
                const int to = which * sizes.padded_sum + sizes.padded_first[layer] + column;
                column_sums.store(to, column_sums[to] + sum);
            }
    }
};

}  // namespace din_kernels::cuda
