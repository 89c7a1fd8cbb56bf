#include "local_activation/backward_prepare.h"

#include "common/block_scan.cuh"
#include "common/launch.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/pack.h"

namespace din_kernels::cuda {
namespace {

constexpr int kThreads = 128;

// dots[i] = <g_i, o_i> + sum_t w_it gw_it, which is sum_t w_it dw_it of the softmax. A warp per candidate.
template <typename S>
__global__ void softmax_dots(int64_t queries, int dim, Global<const S> grad_pooled, Global<const S> pooled,
                             Global<const int64_t> first, Global<const int64_t> pair_begin,
                             Global<const float> pair_weights, Global<const float> grad_pair_weights,
                             Global<float> dots) {
    const int lane = int(threadIdx.x) % 32;
    const int64_t i = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    if (i >= queries) return;
    // Both sums are taken in the order of dw in the backward pass, so that dw - dot of a history of one behaviour is
    // exactly 0.
    float dot = 0.0f, of_weights = 0.0f;
    for (int d = lane; d < dim; d += 32) dot = fmaf(widen(grad_pooled[i * dim + d]), widen(pooled[i * dim + d]), dot);
    if (grad_pair_weights)
        for (int64_t t = lane; t < first[i + 1] - first[i]; t += 32)
            of_weights += pair_weights[pair_begin[i] + t] * grad_pair_weights[pair_begin[i] + t];
    dot = warp_sum(dot) + warp_sum(of_weights);
    if (lane == 0) dots.store(i, dot);
}

// mean and rstd of a layer, from the statistics that forward returned.
__global__ void write_batch_params(Global<const float> mean, Global<const float> var, int width, float eps,
                                   Global<float> param_mean, Global<float> param_rstd) {
    const int channel = int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x);
    if (channel >= width) return;
    param_mean.store(channel, mean[channel]);
    param_rstd.store(channel, 1.0f / sqrtf(var[channel] + eps));
}

}  // namespace

void prepare_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    const Sizes& sizes = plan.sizes;
    pack_weights(call, sizes, plan.transposed, true, stream);
    if (call.normalize == Normalize::kSoftmax)
        with_math(call, [&](auto math) {
            using S = typename decltype(math)::Storage;
            const int64_t cells = call.queries * call.dim;
            launch("softmax_dots", softmax_dots<S>, Grid{ceil_div(call.queries, kThreads / 32)}, kThreads, 0, stream,
                   call.queries, int(call.dim), Global<const S>(static_cast<const S*>(call.grad_pooled), cells),
                   Global<const S>(static_cast<const S*>(call.pooled), cells),
                   carved_array<const int64_t>(call.workspace, plan.work.pair_first, call.queries + 1),
                   Global<const int64_t>(call.pair_begin, call.queries),
                   Global<const float>(fp32(call.pair_weights), call.total_pairs),
                   Global<const float>(fp32(call.grad_pair_weights), call.total_pairs),
                   carved_array<float>(call.workspace, plan.dots, call.queries));
        });
    for (int l = 0; call.dice_training && l < sizes.layers; ++l) {
        const int width = sizes.width[l], first = sizes.width_first[l];
        const auto params = [&](int which) {
            return Global<float>(
                carved<float>(call.workspace, plan.work.params) + which * sizes.padded_sum + sizes.padded_first[l],
                width);
        };
        launch("write_batch_params", write_batch_params, Grid{ceil_div(width, 128)}, 128, 0, stream,
               Global<const float>(fp32(call.statistics) + first, width),
               Global<const float>(fp32(call.statistics) + sizes.width_sum + first, width), width,
               float(call.layers[l].eps), params(2), params(3));
    }
}

}  // namespace din_kernels::cuda
