// The gradients of the weights, which a block sums over all its tiles.
#pragma once

#include "local_activation/backward_call.cuh"

namespace din_kernels::cuda {

// The block's sums [gradient_size], pictured in backward_plan.h, in shared memory or in the workspace.
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
    // Begins with zeros, or with the sums that the chunk before left in the workspace.
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

// gradient [n_end, stride] (from `first` on) += left^T right over the tile's rows. The warps share pieces of 16 x 40:
//
//               columns 0 .. 39   40 .. 79   80 .. 119   120 .. 127
//   n  0 .. 15  warp 0            warp 1     warp 2      warp 3          (D = 128 in groups of 5, 5, 5 and 1 tiles)
//     16 .. 31  warp 1            warp 2     warp 3      warp 0
//     32 .. 47  warp 2            ...
//
// A piece always belongs to the same warp, and the shift by one per row of pieces gives each warp some of the last
// group, which is small.
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

// Adds the tile's dz^T x of a layer with input x. The first layer has two inputs, k and q * k, or folded k alone.
template <typename Math, bool kFolded>
__device__ __forceinline__ void add_layer_gradient(const BackwardCall<typename Math::Storage, kFolded>& call,
                                                   const TileMlp<Math, kFolded>& mlp, const BackwardShared& shared,
                                                   int layer, const Shared<typename Math::Storage>& history) {
    using S = typename Math::Storage;
    const BackwardPlan& plan = call.plan;
    const Sizes& sizes = call.weights.sizes;
    const int inputs = kFolded || layer > 0 ? 1 : 2;
    for (int which = 0; which < inputs; ++which) {
        const Shared<S> input = layer > 0 ? mlp.hidden(layer) : which == 0 ? history : mlp.products();
        const int columns = layer > 0 ? sizes.padded[layer - 1] : sizes.dim;
        const int64_t to =
            layer > 0 ? plan.gradient_layer[layer] : int64_t(which) * sizes.padded[0] * plan.gradient_stride[0];
        add_gradient<Math, kFolded>(
            call, {shared.dz<S>(layer), input, plan.dz_stride, 0, sizes.padded[layer], sizes.stride[layer], 0, columns},
            to, plan.gradient_stride[layer]);
    }
}

}  // namespace din_kernels::cuda
