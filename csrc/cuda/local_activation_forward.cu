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
    constexpr bool kApproximate = sizeof(S) == 2;
    const UnitSizes& sizes = call.weights.sizes;
    const TileShared& at = call.plan.tile;
    const int rows = at.rows, last_layer = sizes.layers - 1;
    const TileLoader<S, kFolded>& loader = call.loader;
    const Shared<S> products(uint32_t(at.products), kFolded ? 0 : rows * sizes.stride[0]);
    const auto hidden = [&](int layer) { return Shared<S>(uint32_t(at.hidden[layer]), rows * sizes.stride[layer]); };
    const auto floats = [](int64_t offset, int size) { return Shared<float>(uint32_t(offset), size); };
    const Shared<float> score = floats(at.score, rows), weight = floats(call.plan.weight, rows),
                        segment_top = floats(call.plan.top, rows), pooled = floats(call.plan.pooled, sizes.dim);

    // Columns that no row and no layer fills stay zero: they meet zero weights, and 0 * NaN would not be 0.
    for (int stage = 0; stage < at.stages; ++stage)
        for (int e = int(threadIdx.x); e < rows * sizes.stride[0]; e += int(blockDim.x))
            loader.keys_of(stage).store(e, S{});
    for (int e = int(threadIdx.x); !kFolded && e < rows * sizes.stride[0]; e += int(blockDim.x)) products.store(e, S{});
    for (int layer = 1; layer <= last_layer; ++layer)
        for (int e = int(threadIdx.x); e < rows * sizes.stride[layer]; e += int(blockDim.x))
            hidden(layer).store(e, S{});
    const int64_t statistics = int64_t(blockIdx.x) * (2 * sizes.padded_sum + 1);
    const int columns = call.statistics_layer < 0 ? 0 : sizes.padded[call.statistics_layer];
    const Shared<float> mean = floats(call.plan.mean, columns), square = floats(call.plan.square, columns);
    int64_t seen = 0;  // rows in the statistics
    if (call.statistics_layer >= 0 && call.resume) {
        seen = int64_t(call.statistics[statistics + 2 * columns]);
        for (int column = int(threadIdx.x); column < columns; column += int(blockDim.x)) {
            mean.store(column, call.statistics[statistics + column]);
            square.store(column, call.statistics[statistics + columns + column]);
        }
    }
    __syncthreads();

    const Range range(loader.pairs.slots.total(), rows, blockIdx.x, gridDim.x);
    Pooling<S, kFolded> pooling{call, range};
    int stage = 0;
    int64_t cursor = 0;
    if (range.begin < range.end) {
        cursor = loader.pairs.find(range.begin, loader.pairs.slots.begin);
        loader.fetch(range.begin, range.end, 0, cursor);
    }
    for (int64_t slot = range.begin; slot < range.end; slot += rows) {
        const bool more = slot + rows < range.end, ahead = more && at.stages > 1;
        if (ahead) {
            loader.fetch(slot + rows, range.end, stage ^ 1, cursor);
            ptx::wait_for_copies<1>();
        } else {
            ptx::wait_for_copies<0>();
        }
        __syncthreads();
        const Shared<S> keys = loader.keys_of(stage);
        const Shared<int> candidates = loader.candidates_of(stage);
        const int valid = loader.valid(slot, range.end, candidates);
        if constexpr (!kFolded)
            multiply_queries(keys, products, candidates, call.query, sizes.dim, sizes.stride[0], call.query_vector);

        float part[2] = {0.0f, 0.0f};  // of the scores of the lane's two rows
        for (int layer = 0; layer <= last_layer; ++layer) {
            const bool collect = layer == call.statistics_layer;
            const Shared<float> z = collect ? floats(call.plan.z, rows * (sizes.padded[layer] + 1)) : score;
            layer_sums<Math, kFolded>(
                call.weights, layer, layer == 0 ? keys : hidden(layer), products, candidates, loader.pairs.slots.begin,
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
            __syncthreads();
            add_statistics(floats(call.plan.z, rows * (columns + 1)), columns, valid, seen, mean, square);
            seen += valid;
        } else {
            for (int half = 0; half < 2; ++half) {
                part[half] += __shfl_xor_sync(~0u, part[half], 1);
                part[half] += __shfl_xor_sync(~0u, part[half], 2);
                const int row = lane_position(0, 2 * half).row;
                if (threadIdx.x % 4 != 0) continue;
                // A row without a weight is in Dice's statistics, so its NaN has come everywhere already: 0 may meet
                // it.
                const bool counts = candidates[row] < 0 || loader.pairs.counts(loader.rows_of(stage)[row]);
                const float s = call.scale * (part[half] + call.weights.output[sizes.padded[last_layer]]);
                score.store(row, counts ? s : call.softmax ? -INFINITY : 0.0f);
            }
            __syncthreads();
            weigh(call, pooling, candidates, score, weight, segment_top, slot, valid);
            __syncthreads();
            pooling.add(candidates, weight, segment_top, keys, pooled, valid);
        }
        __syncthreads();
        if (more && !ahead) loader.fetch(slot + rows, range.end, 0, cursor);
        if (ahead) stage ^= 1;
    }
    if (call.statistics_layer < 0) {
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
