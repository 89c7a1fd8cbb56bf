// Forward of the local activation unit. Flat tiles hold consecutive pairs across candidates. Folded tiles hold pairs of
// one candidate, whose first layer is A_i k + c_i.
#include "local_activation/forward_finish.h"
#include "local_activation/pooling.cuh"
#include "local_activation/tile_launch.cuh"

namespace din_kernels::cuda {
namespace {

// Dice's statistics of a layer over the block's rows: means and sums of squared deviations of its columns.
template <typename S, bool kFolded>
struct LayerStatistics {
    const ForwardCall<S, kFolded>& call;
    int layer, columns, z_stride;
    Shared<float> mean, square, z;
    int64_t seen = 0;  // rows

    __device__ explicit LayerStatistics(const ForwardCall<S, kFolded>& call)
        : call(call),
          layer(call.statistics_layer),
          columns(layer < 0 ? 0 : call.weights.sizes.padded[layer]),
          z_stride(layer < 0 ? 0 : call.weights.sizes.z_stride[layer]),
          mean(uint32_t(call.plan.mean), columns),
          square(uint32_t(call.plan.square), columns),
          z(uint32_t(call.plan.z), call.plan.tile.rows * z_stride) {}

    __device__ bool wanted() const { return layer >= 0; }
    // Goes on from the rows of the chunk before.
    __device__ void start() {
        if (!wanted() || !call.resume) return;
        seen = int64_t(call.statistics[first() + 2 * columns]);
        for (int column = int(threadIdx.x); column < columns; column += int(blockDim.x)) {
            mean.store(column, call.statistics[first() + column]);
            square.store(column, call.statistics[first() + columns + column]);
        }
    }
    __device__ void add(int valid) {
        __syncthreads();
        add_statistics(z, z_stride, columns, valid, seen, mean, square);
        seen += valid;
    }
    __device__ void to_workspace() const {
        for (int column = int(threadIdx.x); column < columns; column += int(blockDim.x)) {
            call.statistics.store(first() + column, seen ? mean[column] : 0.0f);
            call.statistics.store(first() + columns + column, seen ? square[column] : 0.0f);
        }
        if (threadIdx.x == 0) call.statistics.store(first() + 2 * columns, float(seen));
    }

 private:
    __device__ int64_t first() const { return int64_t(blockIdx.x) * (2 * call.weights.sizes.padded_sum + 1); }
};

template <typename Math, bool kFolded>
__global__ void __launch_bounds__(128, 4)
    local_activation_forward(const ForwardCall<typename Math::Storage, kFolded> call) {
    using S = typename Math::Storage;
    const Sizes& sizes = call.weights.sizes;
    const TileShared& at = call.plan.tile;
    const TileLoader<S, kFolded>& loader = call.loader;
    const TileMlp<Math, kFolded> mlp{call, at};
    const auto floats = [](int64_t offset, int size) { return Shared<float>(uint32_t(offset), size); };
    const Shared<float> score = floats(at.score, at.rows), weight = floats(call.plan.weight, at.rows),
                        segment_top = floats(call.plan.top, at.rows), pooled = floats(call.plan.pooled, sizes.dim);
    LayerStatistics<S, kFolded> statistics(call);
    statistics.start();
    mlp.clear();
    __syncthreads();

    const Range range(loader.pairs.slots.total(), at.rows, blockIdx.x, gridDim.x);
    Pooling<S, kFolded> pooling{call, range};
    for_tiles(loader, range, at.stages, [&](int stage, int64_t slot) __attribute__((always_inline)) {
        const Shared<int> candidates = loader.candidates_of(stage);
        const int valid = loader.valid(slot, range.end, candidates);
        // The MLP, or its layers up to the one whose statistics are taken.
        float part[2] = {0.0f, 0.0f};
        const int end = statistics.wanted() ? statistics.layer + 1 : sizes.layers;
        mlp.run(stage, end, part, [&](int layer, int group, const auto& sums) {
            if (layer == statistics.layer) store_sums(sums, group, statistics.z, statistics.z_stride);
        });
        if (statistics.wanted()) return statistics.add(valid);
        // Scores. A row without a weight is in Dice's statistics, so its NaN has come everywhere already: 0 may meet
        // it.
        mlp.scores(part, [&](int row, float s) {
            const bool weighted = candidates[row] < 0 || loader.pairs.has_weight(loader.rows_of(stage)[row]);
            score.store(row, weighted ? s : call.softmax ? -INFINITY : 0.0f);
        });
        __syncthreads();
        // Weights, then the pooled rows.
        weigh(call, pooling, candidates, score, weight, segment_top, slot, valid);
        __syncthreads();
        pooling.add(candidates, weight, segment_top, loader.history_of(stage), pooled, slot, valid);
    });
    if (statistics.wanted())
        statistics.to_workspace();
    else
        pooling.finish(pooled);
}

// Dice in training takes a pass per layer for its statistics, from the first one up. One more pass takes everything
// else.
template <typename Math, bool kFolded>
void run_forward(const LocalActivation& call, const ForwardPlan& plan, Stream stream) {
    using S = typename Math::Storage;
    const auto floats = [&](int64_t offset, int64_t size) { return carved_array<float>(call.workspace, offset, size); };
    ForwardCall<S, kFolded> forward{
        tile_call<S, kFolded>(call, plan),
        plan,
        Global<S>(static_cast<S*>(call.pooled), call.queries * call.dim),
        Global<double>(call.logsumexp, call.queries),
        floats(plan.normalizers, 2 * call.queries),
        Global<float>(fp32(call.pair_weights), call.total_pairs),
        floats(plan.partials, plan.blocks * 2 * (call.dim + 2)),
        floats(plan.statistics, call.dice_training ? plan.blocks * (2 * plan.sizes.padded_sum + 1) : 0)};
    const auto pass = [&](int statistics_layer, const auto& after) {
        launch_over_tiles<kFolded>("local_activation_forward", local_activation_forward<Math, kFolded>, call, plan,
                                   forward, statistics_layer, stream, after);
    };
    for (int layer = 0; call.dice_training && layer < plan.sizes.layers; ++layer) {
        pass(layer, [](Chunk) {});
        finish_statistics(call, plan, layer, stream);
    }
    pass(-1, [&](Chunk chunk) { join_pooled(call, plan, chunk, stream); });
}

}  // namespace

LaunchPlan local_activation_forward_plan(const LocalActivation& call, const DeviceLimits& device) {
    return launch_plan(plan_forward(call, device), false);
}

int64_t local_activation_forward_workspace(const LocalActivation& call) {
    return plan_forward(call, device_limits()).workspace_bytes;
}

void local_activation_forward(const LocalActivation& call, Stream stream) {
    const ForwardPlan plan = plan_forward(call, device_limits());
    with_prepared_call(call, plan, stream,
                       [&](auto math, auto folded) { run_forward<decltype(math), folded()>(call, plan, stream); });
    if (call.normalize == Normalize::kSoftmax && call.pair_begin) normalize_pair_weights(call, plan, stream);
}

}  // namespace din_kernels::cuda
