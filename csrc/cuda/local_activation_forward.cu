// Forward of the local activation unit. Flat tiles: consecutive pairs across candidates, sums by segment. Folded tiles:
// pairs of one candidate, whose first layer is A_i k + c_i.
#include "launch.cuh"
#include "local_activation_finish.h"
#include "local_activation_fold.h"
#include "unit_math_of.h"
#include "unit_pooling.cuh"
#include "unit_prepare.h"

namespace din_kernels::cuda {
namespace {

template <typename Math, bool kFolded>
__global__ void __launch_bounds__(128, 4) unit_forward(const ForwardCall<typename Math::Storage, kFolded> call) {
    using S = typename Math::Storage;
    const UnitSizes& sizes = call.weights.sizes;
    const TileShared& at = call.plan.tile;
    const int rows = at.rows, collected = call.statistics_layer;
    const TileLoader<S, kFolded>& loader = call.loader;
    const TileMlp<Math, kFolded> mlp{call.weights, loader, at};
    const auto floats = [](int64_t offset, int size) { return Shared<float>(uint32_t(offset), size); };
    const Shared<float> score = floats(at.score, rows), weight = floats(call.plan.weight, rows),
                        segment_top = floats(call.plan.top, rows), pooled = floats(call.plan.pooled, sizes.dim);
    const int64_t statistics = int64_t(blockIdx.x) * (2 * sizes.padded_sum + 1);
    const int columns = collected < 0 ? 0 : sizes.padded[collected], z_stride = columns + 1;
    const Shared<float> mean = floats(call.plan.mean, columns), square = floats(call.plan.square, columns),
                        z = floats(call.plan.z, collected < 0 ? 0 : rows * z_stride);
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
    for_tiles(loader, range, at.stages, [&](int stage, int64_t slot) {
        const Shared<int> candidates = loader.candidates_of(stage);
        const int valid = loader.valid(slot, range.end, candidates);
        float part[2] = {0.0f, 0.0f};
        mlp.run(stage, call.query, call.query_vector, collected < 0 ? sizes.layers : collected + 1, part,
                [&](int layer, const LanePosition& position, float value) {
                    if (layer == collected) z.store(position.row * z_stride + position.column, value);
                });
        if (collected >= 0) {
            __syncthreads();
            add_statistics(z, columns, valid, seen, mean, square);
            seen += valid;
            return;
        }
        mlp.scores(part, call.scale, [&](int row, float s) {
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
    const S* const query = query_of<S>(call, plan.work);
    ForwardCall<S, kFolded> forward{
        unit_weights(call, plan.sizes, plan.work, plan.fold),
        tile_loader<S, kFolded>(call, plan.sizes, plan.tile, plan.work),
        Global<const S>(query, call.queries * call.dim),
        call.dim % 4 == 0 && reinterpret_cast<uintptr_t>(query) % (4 * sizeof(S)) == 0,
        call.normalize == Normalize::kSoftmax,
        call.scale,
        -1,
        false,
        plan,
        Global<S>(static_cast<S*>(call.pooled), call.queries * call.dim),
        Global<double>(call.logsumexp, call.queries),
        Global<float>(carved<float>(call.workspace, plan.normalizers), 2 * call.queries),
        Global<const int64_t>(call.pair_begin, call.queries),
        Global<float>(call.pair_weights, call.total_pairs),
        Global<float>(carved<float>(call.workspace, plan.partials), plan.blocks * 2 * (call.dim + 2)),
        Global<float>(carved<float>(call.workspace, plan.statistics),
                      call.dice_training ? plan.blocks * (2 * plan.sizes.padded_sum + 1) : 0)};
    const auto pass = [&](int statistics_layer) {
        forward.statistics_layer = statistics_layer;
        for_chunks(call, plan.fold, [&](Chunk chunk) {
            if constexpr (kFolded) fold(call, plan.sizes, plan.work, plan.fold, chunk, stream);
            forward.loader.pairs.slots = slots_of(call, plan.work, chunk), forward.resume = chunk.begin > 0;
            launch("local_activation_forward", unit_forward<Math, kFolded>, Grid{plan.blocks}, 32 * plan.tile.warps,
                   size_t(plan.bytes), stream, forward);
            if (statistics_layer < 0) join_pooled(call, plan, chunk, stream);
        });
        if (statistics_layer >= 0) finish_statistics(call, plan, statistics_layer, stream);
    };
    for (int layer = 0; call.dice_training && layer < plan.sizes.layers; ++layer) pass(layer);
    pass(-1);
}

}  // namespace

LaunchPlan local_activation_forward_plan(const LocalActivation& call, const DeviceLimits& device) {
    const ForwardPlan plan = plan_forward(call, device);
    return {plan.tile.rows, plan.tile.stages,  32 * plan.tile.warps, plan.blocks, plan.bytes, plan.workspace_bytes,
            false,          plan.sizes.folded, plan.fold.chunk};
}

int64_t local_activation_forward_workspace(const LocalActivation& call) {
    return plan_forward(call, device_limits()).workspace_bytes;
}

void local_activation_forward(const LocalActivation& call, Stream stream) {
    const ForwardPlan plan = plan_forward(call, device_limits());
    prepare_unit(call, plan.sizes, plan.work, plan.tile.rows, stream);
    if (plan.sizes.folded) prepare_fold(call, plan.sizes, plan.fold, stream);
    with_math(call, [&](auto math) {
        using Math = decltype(math);
        if (plan.sizes.folded)
            run_forward<Math, true>(call, plan, stream);
        else
            run_forward<Math, false>(call, plan, stream);
    });
    if (call.normalize == Normalize::kSoftmax && call.pair_begin) normalize_pair_weights(call, plan, stream);
}

}  // namespace din_kernels::cuda
