#include "local_activation/forward_finish.h"

#include <cmath>

#include "common/block_scan.cuh"
#include "common/launch.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/pooling.cuh"

namespace din_kernels::cuda {
namespace {

constexpr int kThreads = 128;

// Joins the partials of candidates that several blocks share, and writes zeros for candidates without behaviours. A
// warp per candidate.
template <typename S>
__global__ void join_partials(Slots slots, int dim, int rows, int64_t blocks, bool softmax,
                              Global<const float> partials,  // [blocks, 2, D + 2]
                              Global<S> pooled,              // [Q, D]
                              Global<double> logsumexp,      // [Q], softmax
                              Global<float> normalizers) {   // [Q, 2], softmax
    const int lane = int(threadIdx.x) % 32;
    const int64_t i = slots.begin + int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    if (i >= slots.end) return;
    const BlocksOf in(slots, i, rows, blocks);
    if (in.none()) {
        for (int d = lane; d < dim; d += 32) pooled.store(i * dim + d, narrow<S>(0.0f));
        if (softmax && lane == 0) logsumexp.store(i, 0.0);
    }
    if (in.none() || in.one()) return;
    const auto partial = [&](int64_t block) { return in.partial(block) * (dim + 2); };
    // The maximum of the scores and the sum of the weights, over all parts.
    float top = -INFINITY, sum = 0.0f;
    if (softmax) {
        for (int64_t block = in.from; block <= in.to; ++block) top = fmaxf(top, partials[partial(block)]);
        for (int64_t block = in.from; block <= in.to; ++block)
            sum += partials[partial(block) + 1] * exp_below(partials[partial(block)], top);
        if (lane == 0) {
            logsumexp.store(i, logsumexp_of(top, sum));
            normalizers.store(2 * i, top), normalizers.store(2 * i + 1, share_of(sum));
        }
    }
    // The pooled row, from parts that are scaled to the common maximum.
    for (int d = lane; d < dim; d += 32) {
        float total = 0.0f;
        for (int64_t block = in.from; block <= in.to; ++block) {
            const float keep = softmax ? exp_below(partials[partial(block)], top) : 1.0f;
            total += keep * partials[partial(block) + 2 + d];
        }
        pooled.store(i * dim + d, narrow<S>(softmax ? total * share_of(sum) : total));
    }
}

// Turns scores into weights by the maximum and the sum, not by logsumexp: that would cancel in large scores.
__global__ void normalize_weights(int64_t queries, Global<const int64_t> first, Global<const float> normalizers,
                                  Global<const int64_t> pair_begin, Global<float> pair_weights) {
    const int lane = int(threadIdx.x) % 32;
    const int64_t i = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    if (i >= queries) return;
    const int64_t pairs = first[i + 1] - first[i];
    if (pairs == 0) return;
    const float top = normalizers[2 * i], share = normalizers[2 * i + 1];
    for (int64_t t = lane; t < pairs; t += 32) {
        const int64_t at = pair_begin[i] + t;
        pair_weights.store(at, exp_below(pair_weights[at], top) * share);
    }
}

// A warp per channel joins the blocks' moments. Without a row the mean is 0 and the variance 1, as in the reference.
__global__ void join_statistics(Global<const float> blocks_statistics, int64_t blocks, int stride, int columns,
                                float eps, Global<float> mean, Global<float> variance, Global<float> param_mean,
                                Global<float> param_rstd) {
    const int64_t channel = blockIdx.x;
    Moments all;
    for (int64_t block = threadIdx.x; block < blocks; block += 32)
        all.join({blocks_statistics[block * stride + 2 * columns], blocks_statistics[block * stride + channel],
                  blocks_statistics[block * stride + columns + channel]});
    all = warp_join(all);
    if (threadIdx.x != 0) return;
    const float v = all.rows > 0.0f ? all.square / all.rows : 1.0f;
    mean.store(channel, all.mean), variance.store(channel, v);
    param_mean.store(channel, all.mean), param_rstd.store(channel, 1.0f / sqrtf(v + eps));
}

}  // namespace

void join_pooled(const LocalActivation& call, const ForwardPlan& plan, Chunk chunk, Stream stream) {
    with_math(call, [&](auto math) {
        using S = typename decltype(math)::Storage;
        launch("join_partials", join_partials<S>, Grid{ceil_div(chunk.end - chunk.begin, kThreads / 32)}, kThreads, 0,
               stream, slots_of(call, plan.work, chunk), int(call.dim), plan.tile.rows, plan.blocks,
               call.normalize == Normalize::kSoftmax,
               carved_array<const float>(call.workspace, plan.partials, plan.blocks * 2 * (call.dim + 2)),
               Global<S>(static_cast<S*>(call.pooled), call.queries * call.dim),
               Global<double>(call.logsumexp, call.queries),
               carved_array<float>(call.workspace, plan.normalizers, 2 * call.queries));
    });
}

void normalize_pair_weights(const LocalActivation& call, const ForwardPlan& plan, Stream stream) {
    launch("normalize_weights", normalize_weights, Grid{ceil_div(call.queries, kThreads / 32)}, kThreads, 0, stream,
           call.queries, carved_array<const int64_t>(call.workspace, plan.work.pair_first, call.queries + 1),
           carved_array<const float>(call.workspace, plan.normalizers, 2 * call.queries),
           Global<const int64_t>(call.pair_begin, call.queries),
           Global<float>(fp32(call.pair_weights), call.total_pairs));
}

void finish_statistics(const LocalActivation& call, const ForwardPlan& plan, int layer, Stream stream) {
    const Sizes& sizes = plan.sizes;
    const int stride = 2 * sizes.padded_sum + 1, width = sizes.width[layer];
    float* const params = carved<float>(call.workspace, plan.work.params) + sizes.padded_first[layer];
    launch("join_statistics", join_statistics, Grid{width}, 32, 0, stream,
           carved_array<const float>(call.workspace, plan.statistics, plan.blocks * stride), plan.blocks, stride,
           sizes.padded[layer], float(call.layers[layer].eps),
           Global<float>(fp32(call.statistics) + sizes.width_first[layer], width),
           Global<float>(fp32(call.statistics) + sizes.width_sum + sizes.width_first[layer], width),
           Global<float>(params + 2 * sizes.padded_sum, width), Global<float>(params + 3 * sizes.padded_sum, width));
}

}  // namespace din_kernels::cuda
