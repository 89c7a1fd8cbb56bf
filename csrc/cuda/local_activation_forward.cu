// Forward of the local activation unit on flat tiles: consecutive pairs across candidates, sums by segment.
#include <cmath>

#include "launch.cuh"
#include "local_activation_finish.h"
#include "moments.cuh"
#include "unit_math_of.h"
#include "unit_prepare.h"
#include "unit_tile.cuh"

namespace din_kernels::cuda {
namespace {

template <typename S>
struct ForwardCall {
    UnitWeights weights;
    TileLoader<S> loader;
    Global<const S> query;  // [Q, D]
    bool query_vector;
    bool softmax;
    float scale;
    int statistics_layer;  // collect Dice's statistics of this layer's z instead of pooling; -1: pool
    ForwardPlan plan;
    Global<S> pooled;                  // [Q, D]
    Global<float> logsumexp;           // [Q], softmax
    Global<float> normalizers;         // [Q, 2], softmax: maximum of the scores, sum of exp(score - maximum)
    Global<const int64_t> pair_begin;  // [Q] or null
    Global<float> pair_weights;        // [total_pairs]
    Global<float> partials;            // [blocks, 2, D + 2]
    Global<float> statistics;          // [blocks, 2 padded_sum + 1]: means, sums of squared deviations, rows
};

// The pooled sum of the candidate whose rows the block is going through. Every thread holds the same scalars and owns
// columns threadIdx.x, threadIdx.x + blockDim.x, ... of the sum.
template <typename S>
struct Pooling {
    const ForwardCall<S>& call;
    const Range& range;
    int64_t candidate = -1;
    float top = 0, sum = 0;

    // The candidate's rows end here, or the block's do: to pooled, or, where another block has some of its rows, to the
    // block's partials: 0 for one that began before the block, 1 for one that goes on behind it.
    __device__ void finish(const Shared<float>& pooled) const {
        if (candidate < 0) return;
        const int dim = call.weights.sizes.dim;
        const bool began = int64_t(call.loader.pairs.first[candidate]) >= range.begin;
        const bool ended = int64_t(call.loader.pairs.first[candidate + 1]) <= range.end;
        const int64_t partial = (2 * int64_t(blockIdx.x) + (began ? 1 : 0)) * (dim + 2);
        const float share = call.softmax ? 1.0f / sum : 1.0f;
        for (int d = int(threadIdx.x); d < dim; d += int(blockDim.x)) {
            if (began && ended)
                call.pooled.store(candidate * dim + d, narrow<S>(pooled[d] * share));
            else
                call.partials.store(partial + 2 + d, pooled[d]);
        }
        if (threadIdx.x != 0) return;
        if (began && ended) {
            if (!call.softmax) return;
            call.logsumexp.store(candidate, top + logf(sum));
            call.normalizers.store(2 * candidate, top), call.normalizers.store(2 * candidate + 1, sum);
        } else {
            call.partials.store(partial, top), call.partials.store(partial + 1, sum);
        }
    }

    // Adds the tile's rows. weight and segment_top are of its rows; the maximum covers what came before the tile.
    __device__ void add(const Shared<int>& candidates, const Shared<float>& weight, const Shared<float>& segment_top,
                        const Shared<S>& keys, const Shared<float>& pooled, int valid) {
        const int dim = call.weights.sizes.dim, stride = call.weights.sizes.stride[0];
        for (int first = 0; first < valid;) {
            const int mine = candidates[first];
            int last = first + 1;
            while (last < valid && candidates[last] == mine) ++last;
            float keep = 1.0f;
            if (mine != candidate) {
                finish(pooled);
                candidate = mine, sum = 0.0f, keep = 0.0f;
            } else if (call.softmax) {
                keep = expf(top - segment_top[first]);
            }
            if (call.softmax) {
                top = segment_top[first];
                sum *= keep;
                for (int row = first; row < last; ++row) sum += weight[row];
            }
            for (int d = int(threadIdx.x); d < dim; d += int(blockDim.x)) {
                float total = keep == 0.0f ? 0.0f : pooled[d] * keep;
                for (int row = first; row < last; ++row)
                    total = fmaf(weight[row], widen(keys[row * stride + d]), total);
                pooled.store(d, total);
            }
            first = last;
        }
    }
};

// weight [rows]: the score, or exp(score - maximum of the candidate so far); segment_top [rows]: that maximum.
template <typename S>
__device__ void weigh(const ForwardCall<S>& call, const Pooling<S>& pooling, const Shared<int>& candidates,
                      const Shared<float>& score, const Shared<float>& weight, const Shared<float>& segment_top,
                      int64_t pair, int valid) {
    for (int row = int(threadIdx.x); row < valid; row += int(blockDim.x)) {
        const int64_t mine = candidates[row];
        const float own = score[row];
        if (call.pair_begin) {
            const int64_t position = pair + row - int64_t(call.loader.pairs.first[mine]);
            call.pair_weights.store(call.pair_begin[mine] + position, own);
        }
        float top = own;
        if (call.softmax) {
            if (mine == pooling.candidate) top = fmaxf(top, pooling.top);
            for (int other = row - 1; other >= 0 && candidates[other] == mine; --other) top = fmaxf(top, score[other]);
            for (int other = row + 1; other < valid && candidates[other] == mine; ++other)
                top = fmaxf(top, score[other]);
            segment_top.store(row, top);
        }
        weight.store(row, call.softmax ? expf(own - top) : own);
    }
}

// Mean and sum of squared deviations of the columns of z [valid, columns], joined to those of the rows before.
__device__ inline void add_statistics(const Shared<float>& z, int columns, int valid, int64_t before,
                                      const Shared<float>& mean, const Shared<float>& square) {
    for (int column = int(threadIdx.x); column < columns; column += int(blockDim.x)) {
        Moments all;
        if (before) all = {float(before), mean[column], square[column]};
        for (int row = 0; row < valid; ++row) all.add(z[row * (columns + 1) + column], 1.0f / float(before + row + 1));
        mean.store(column, all.mean), square.store(column, all.square);
    }
}

template <typename Math>
__global__ void __launch_bounds__(128, 4) unit_forward(const ForwardCall<typename Math::Storage> call) {
    using S = typename Math::Storage;
    constexpr bool kApproximate = sizeof(S) == 2;
    const UnitSizes& sizes = call.weights.sizes;
    const TileShared& at = call.plan.tile;
    const int rows = at.rows, last_layer = sizes.layers - 1;
    const TileLoader<S>& loader = call.loader;
    const Shared<S> products(uint32_t(at.products), rows * sizes.stride[0]);
    const auto hidden = [&](int layer) { return Shared<S>(uint32_t(at.hidden[layer]), rows * sizes.stride[layer]); };
    const auto floats = [](int64_t offset, int size) { return Shared<float>(uint32_t(offset), size); };
    const Shared<float> score = floats(at.score, rows), weight = floats(call.plan.weight, rows),
                        segment_top = floats(call.plan.top, rows), pooled = floats(call.plan.pooled, sizes.dim);

    // Columns that no row and no layer fills stay zero: they meet zero weights, and 0 * NaN would not be 0.
    for (int stage = 0; stage < at.stages; ++stage)
        for (int e = int(threadIdx.x); e < rows * sizes.stride[0]; e += int(blockDim.x))
            loader.keys_of(stage).store(e, S{});
    for (int e = int(threadIdx.x); e < rows * sizes.stride[0]; e += int(blockDim.x)) products.store(e, S{});
    for (int layer = 1; layer <= last_layer; ++layer)
        for (int e = int(threadIdx.x); e < rows * sizes.stride[layer]; e += int(blockDim.x))
            hidden(layer).store(e, S{});
    __syncthreads();

    const Range range(loader.pairs.first[loader.pairs.queries], rows, blockIdx.x, gridDim.x);
    Pooling<S> pooling{call, range};
    int stage = 0;
    int64_t cursor = 0;
    if (range.begin < range.end) {
        cursor = loader.pairs.find(range.begin, 0);
        loader.fetch(range.begin, range.end, 0, cursor);
    }
    for (int64_t pair = range.begin; pair < range.end; pair += rows) {
        const bool more = pair + rows < range.end, ahead = more && at.stages > 1;
        if (ahead) {
            loader.fetch(pair + rows, range.end, stage ^ 1, cursor);
            ptx::wait_for_copies<1>();
        } else {
            ptx::wait_for_copies<0>();
        }
        __syncthreads();
        const int valid = range.end - pair < rows ? int(range.end - pair) : rows;
        const Shared<S> keys = loader.keys_of(stage);
        const Shared<int> candidates = loader.candidates_of(stage);
        multiply_queries(keys, products, candidates, call.query, sizes.dim, sizes.stride[0], call.query_vector);

        float part[2] = {0.0f, 0.0f};  // of the scores of the lane's two rows
        for (int layer = 0; layer <= last_layer; ++layer) {
            const bool collect = layer == call.statistics_layer;
            const Shared<float> z = collect ? floats(call.plan.z, rows * (sizes.padded[layer] + 1)) : score;
            layer_sums<Math>(
                call.weights, layer, layer == 0 ? keys : hidden(layer), products, candidates,
                [&](const LanePosition& position, float sum) {
                    if (collect) {
                        z.store(position.row * (sizes.padded[layer] + 1) + position.column, sum);
                        return;
                    }
                    const float h = activate<kApproximate>(call.weights.activation, sum,
                                                           call.weights.channel(layer, position.column));
                    if (layer == last_layer)
                        part[position.half] = fmaf(call.weights.output[position.column], h, part[position.half]);
                    else
                        hidden(layer + 1).store(position.row * sizes.stride[layer + 1] + position.column, narrow<S>(h));
                });
            if (collect) break;
            __syncwarp();
        }
        if (call.statistics_layer >= 0) {
            const int columns = sizes.padded[call.statistics_layer];
            __syncthreads();
            add_statistics(floats(call.plan.z, rows * (columns + 1)), columns, valid, pair - range.begin,
                           floats(call.plan.mean, columns), floats(call.plan.square, columns));
        } else {
            for (int half = 0; half < 2; ++half) {
                part[half] += __shfl_xor_sync(~0u, part[half], 1);
                part[half] += __shfl_xor_sync(~0u, part[half], 2);
                const LanePosition position = lane_position(0, 2 * half);
                if (threadIdx.x % 4 == 0)
                    score.store(position.row,
                                call.scale * (part[half] + call.weights.output[sizes.padded[last_layer]]));
            }
            __syncthreads();
            weigh(call, pooling, candidates, score, weight, segment_top, pair, valid);
            __syncthreads();
            pooling.add(candidates, weight, segment_top, keys, pooled, valid);
        }
        __syncthreads();
        if (more && !ahead) loader.fetch(pair + rows, range.end, 0, cursor);
        if (ahead) stage ^= 1;
    }
    if (call.statistics_layer < 0) {
        pooling.finish(pooled);
        return;
    }
    const int columns = sizes.padded[call.statistics_layer];
    const int64_t to = int64_t(blockIdx.x) * (2 * sizes.padded_sum + 1);
    for (int column = int(threadIdx.x); column < columns; column += int(blockDim.x)) {
        const bool any = range.begin < range.end;
        call.statistics.store(to + column, any ? floats(call.plan.mean, columns)[column] : 0.0f);
        call.statistics.store(to + columns + column, any ? floats(call.plan.square, columns)[column] : 0.0f);
    }
    if (threadIdx.x == 0) call.statistics.store(to + 2 * columns, float(range.end - range.begin));
}

}  // namespace

LaunchPlan local_activation_forward_plan(const LocalActivation& call, const DeviceLimits& device) {
    const ForwardPlan plan = plan_forward(call, device);
    return {plan.tile.rows, plan.tile.stages, 32 * plan.tile.warps, plan.blocks, plan.bytes, plan.workspace_bytes,
            false};
}

int64_t local_activation_forward_workspace(const LocalActivation& call) {
    return plan_forward(call, device_limits()).workspace_bytes;
}

void local_activation_forward(const LocalActivation& call, Stream stream) {
    const ForwardPlan plan = plan_forward(call, device_limits());
    prepare_unit(call, plan.sizes, plan.work, stream);
    with_math(call, [&](auto math) {
        using Math = decltype(math);
        using S = typename Math::Storage;
        const S* const query = query_of<S>(call, plan.work);
        ForwardCall<S> forward{
            unit_weights(call, plan.sizes, plan.work),
            tile_loader<S>(call, plan.sizes, plan.tile, plan.work),
            Global<const S>(query, call.queries * call.dim),
            call.dim % 4 == 0 && reinterpret_cast<uintptr_t>(query) % (4 * sizeof(S)) == 0,
            call.normalize == Normalize::kSoftmax,
            call.scale,
            -1,
            plan,
            Global<S>(static_cast<S*>(call.pooled), call.queries * call.dim),
            Global<float>(call.logsumexp, call.queries),
            Global<float>(carved<float>(call.workspace, plan.normalizers), 2 * call.queries),
            Global<const int64_t>(call.pair_begin, call.queries),
            Global<float>(call.pair_weights, call.total_pairs),
            Global<float>(carved<float>(call.workspace, plan.partials), plan.blocks * 2 * (call.dim + 2)),
            Global<float>(carved<float>(call.workspace, plan.statistics),
                          call.dice_training ? plan.blocks * (2 * plan.sizes.padded_sum + 1) : 0)};
        const auto run = [&] {
            launch("local_activation_forward", unit_forward<Math>, Grid{plan.blocks}, 32 * plan.tile.warps,
                   size_t(plan.bytes), stream, forward);
        };
        for (int layer = 0; call.dice_training && layer < plan.sizes.layers; ++layer) {
            forward.statistics_layer = layer;
            run();
            finish_statistics(call, plan, layer, stream);
        }
        forward.statistics_layer = -1;
        run();
    });
    finish_forward(call, plan, stream);
}

}  // namespace din_kernels::cuda
