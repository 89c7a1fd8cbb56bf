// Forward of the local activation unit. Flat tiles: consecutive pairs across candidates, sums by segment. Folded tiles:
// pairs of one candidate, whose first layer is A_i k + c_i.
#include "local_activation/forward_finish.h"
#include "local_activation/tile_launch.cuh"
#include "local_activation/pooling.cuh"

namespace din_kernels::cuda {
namespace {

template <typename Math, bool kFolded>
__global__ void __launch_bounds__(128, 4) unit_forward(const ForwardCall<typename Math::Storage, kFolded> call) {
    using S = typename Math::Storage;
    const UnitSizes& sizes = call.weights.sizes;
    const TileShared& at = call.plan.tile;
    const int rows = at.rows, collected = call.statistics_layer;
    const TileLoader<S, kFolded>& loader = call.loader;
    const TileMlp<Math, kFolded> mlp{call, at};
    const auto floats = [](int64_t offset, int size) { return Shared<float>(uint32_t(offset), size); };
    const Shared<float> score = floats(at.score, rows), weight = floats(call.plan.weight, rows),
                        segment_top = floats(call.plan.top, rows), pooled = floats(call.plan.pooled, sizes.dim);
    const int64_t statistics = int64_t(blockIdx.x) * (2 * sizes.padded_sum + 1);
    const int columns = collected < 0 ? 0 : sizes.padded[collected],
              z_stride = collected < 0 ? 0 : sizes.z_stride[collected];
    const Shared<float> mean = floats(call.plan.mean, columns), square = floats(call.plan.square, columns),
                        z = floats(call.plan.z, rows * z_stride);
    int64_t seen = 0;  // rows in the statistics
    if (collected >= 0 && call.resume) {
        seen = int64_t(call.statistics[statistics + 2 * columns]);
        for (int column = int(threadIdx.x); column < columns; column += int(blockDim.x)) {
            mean.store(column, call.statistics[statistics + column]);
            square.store(column, call.statistics[statistics + columns + column]);
        }
    }
    mlp.clear();
    __syncthreads();

    const Range range(loader.pairs.slots.total(), rows, blockIdx.x, gridDim.x);
    Pooling<S, kFolded> pooling{call, range};
    for_tiles(loader, range, at.stages, [&](int stage, int64_t slot) __attribute__((always_inline)) {
        const Shared<int> candidates = loader.candidates_of(stage);
        const int valid = loader.valid(slot, range.end, candidates);
        float part[2] = {0.0f, 0.0f};
        mlp.run(stage, collected < 0 ? sizes.layers : collected + 1, part, [&](int layer, int group, const auto& sums) {
            if (layer == collected) store_sums(sums, group, z, z_stride);
        });
        if (collected >= 0) {
            __syncthreads();
            add_statistics(z, z_stride, columns, valid, seen, mean, square);
            seen += valid;
            return;
        }
        mlp.scores(part, [&](int row, float s) {
            // A row without a weight is in Dice's statistics, so its NaN has come everywhere already: 0 may meet it.
            const bool counts = candidates[row] < 0 || loader.pairs.counts(loader.rows_of(stage)[row]);
            score.store(row, counts ? s : call.softmax ? -INFINITY : 0.0f);
        });
        __syncthreads();
        weigh(call, pooling, candidates, score, weight, segment_top, slot, valid);
        __syncthreads();
        pooling.add(candidates, weight, segment_top, loader.keys_of(stage), pooled, slot, valid);
    });
    if (collected < 0) {
        pooling.finish(pooled);
        return;
    }
    for (int column = int(threadIdx.x); column < columns; column += int(blockDim.x)) {
        call.statistics.store(statistics + column, seen ? mean[column] : 0.0f);
        call.statistics.store(statistics + columns + column, seen ? square[column] : 0.0f);
    }
    if (threadIdx.x == 0) call.statistics.store(statistics + 2 * columns, float(seen));
}

template <typename Math, bool kFolded>
void run_forward(const LocalActivation& call, const ForwardPlan& plan, Stream stream) {
    using S = typename Math::Storage;
    const auto floats = [&](int64_t offset, int64_t size) {
        return Global<float>(carved<float>(call.workspace, offset), size);
    };
    ForwardCall<S, kFolded> forward{
        unit_call<S, kFolded>(call, plan),
        plan,
        Global<S>(static_cast<S*>(call.pooled), call.queries * call.dim),
        Global<double>(call.logsumexp, call.queries),
        floats(plan.normalizers, 2 * call.queries),
        Global<float>(call.pair_weights, call.total_pairs),
        floats(plan.partials, plan.blocks * 2 * (call.dim + 2)),
        floats(plan.statistics, call.dice_training ? plan.blocks * (2 * plan.sizes.padded_sum + 1) : 0)};
    const auto pass = [&](int statistics_layer, const auto& after) {
        launch_over_tiles<kFolded>("local_activation_forward", unit_forward<Math, kFolded>, call, plan, forward,
                                   statistics_layer, stream, after);
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
    with_prepared_unit(call, plan, stream,
                       [&](auto math, auto folded) { run_forward<decltype(math), folded()>(call, plan, stream); });
    if (call.normalize == Normalize::kSoftmax && call.pair_begin) normalize_pair_weights(call, plan, stream);
}

}  // namespace din_kernels::cuda
