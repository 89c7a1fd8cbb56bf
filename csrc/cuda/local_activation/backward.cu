// Backward of the local activation unit on the same tiles: persistent blocks that recompute a tile's forward, keep
// the sums of the weights' gradients and write one partial each. With g the gradient of pooled, per pair
//   dw = <g, k> + gw,   ds = scale dw  or  scale w (dw - sum_r w_r dw_r)
//   dz of the last layer = ds w_out act'(z),   of the one before (dz W) act'(z), ...
//   dk = w g + dz1 (Wk - Wd) + q (dz1 Wp),   dq += k (dz1 Wp),   dc += dz1
// and folded
//   dk = w g + dz1 A_i,   dA_i += dz1^T k,   dc += dz1
#include "local_activation/backward_finish.h"
#include "local_activation/layer_gradient.cuh"
#include "local_activation/tile_launch.cuh"
#include "local_activation/score_gradient.cuh"

namespace din_kernels::cuda {
namespace {

template <typename Math, bool kFolded>
__global__ void __launch_bounds__(128, 1) unit_backward(const BackwardCall<typename Math::Storage, kFolded> call) {
    using S = typename Math::Storage;
    const UnitSizes& sizes = call.weights.sizes;
    const BackwardPlan& plan = call.plan;
    const TileShared& at = plan.tile;
    const int rows = at.rows;
    const TileLoader<S, kFolded>& loader = call.loader;
    const TileMlp<Math, kFolded> mlp{call, at};
    const BackwardShared shared{plan};
    const Shared<float> score = shared.floats(at.score, rows), column_sums = shared.column_sums();
    mlp.clear();
    for (int e = int(threadIdx.x); e < rows * plan.dz_stride; e += int(blockDim.x))
        shared.dz<S>(0).store(e, S{}), shared.dz<S>(1).store(e, S{});
    const int64_t columns_first = int64_t(blockIdx.x) * plan.columns_size;
    for (int64_t e = threadIdx.x; e < plan.columns_size; e += blockDim.x)
        column_sums.store(int(e), call.resume ? call.columns[columns_first + e] : 0.0f);
    const GradientSum<S, kFolded> gradient{call};
    if (call.statistics_layer < 0) gradient.start();
    __syncthreads();

    const Range range(loader.pairs.slots.total(), rows, blockIdx.x, gridDim.x);
    QuerySums<S, kFolded> query_sums{call, range};
    SoftmaxResidual<S, kFolded> residual{call, range};
    for_tiles(loader, range, at.stages, [&](int stage, int64_t slot) __attribute__((always_inline)) {
        const Shared<S> keys = loader.keys_of(stage);
        const Shared<int> candidates = loader.candidates_of(stage);
        const int valid = loader.valid(slot, range.end, candidates);
        float part[2] = {0.0f, 0.0f};
        mlp.run(stage, sizes.layers, part, [&](int layer, int group, const auto& sums) {
            store_sums(sums, group, shared.z(layer), sizes.z_stride[layer]);
        });
        mlp.scores(part, [&](int row, float s) { score.store(row, s); });
        __syncwarp();
        weigh_rows(call, shared, keys, candidates, loader.rows_of(stage), score, slot);
        if (call.softmax) residual.take(candidates, shared.weight(), score, shared.ds(), slot, valid);
        if (kFolded && call.statistics_layer < 0) query_sums.open(candidates[0], shared.query_sums());

        for (int layer = sizes.layers - 1; layer >= 0 && layer >= call.statistics_layer; --layer) {
            layer_gradient<Math, kFolded>(call, shared, layer, candidates);
            // Of k and then of q * k, or of the layer's input.
            for (int part = 0; call.statistics_layer < 0 && part < (kFolded || layer > 0 ? 1 : 2); ++part) {
                const int columns = layer == 0 ? sizes.dim : sizes.padded[layer - 1];
                const int64_t to =
                    layer > 0 ? plan.gradient_layer[layer] : int64_t(part) * sizes.padded[0] * plan.gradient_stride[0];
                add_gradient<Math, kFolded>(call,
                                            {shared.dz<S>(layer),
                                             layer > 0   ? mlp.hidden(layer)
                                             : part == 0 ? keys
                                                         : mlp.products(),
                                             plan.dz_stride, 0, sizes.padded[layer], sizes.stride[layer], 0, columns},
                                            to, plan.gradient_stride[layer]);
            }
            __syncthreads();
        }
        if (call.statistics_layer >= 0) return;
        row_gradient<Math, kFolded>(call, shared, keys, candidates, loader.rows_of(stage), slot);
        if (threadIdx.x == 0) {
            const int64_t bias = plan.columns_size - 1;
            float sum = column_sums[int(bias)];
            for (int row = 0; row < valid; ++row) sum += shared.ds()[row];
            column_sums.store(int(bias), sum);
        }
        __syncthreads();
        query_sums.add(candidates, shared.z(0), shared.contribution(), shared.query_sums(), slot, valid);
    });
    for (int64_t e = threadIdx.x; e < plan.columns_size; e += blockDim.x)
        call.columns.store(columns_first + e, column_sums[int(e)]);
    if (call.statistics_layer >= 0) return;
    query_sums.finish(shared.query_sums());
    gradient.to_workspace();
}

template <typename Math, bool kFolded>
void run_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    using S = typename Math::Storage;
    const UnitSizes& sizes = plan.sizes;
    const Global<const uint32_t> none(nullptr, 0);
    const auto packed = [&](int64_t offset, int64_t in, int64_t out) {
        return Global<const uint32_t>(carved<uint32_t>(call.workspace, offset), packed_sizes(sizes, in, out).words);
    };
    const auto transposed = [&](int l) {
        return l > 0 && l < sizes.layers ? packed(plan.layer_transposed[l], sizes.padded[l], sizes.width[l - 1]) : none;
    };
    const auto floats = [&](int64_t offset, int64_t size) {
        return Global<float>(carved<float>(call.workspace, offset), size);
    };
    const bool shared_rows = call.query_to_user != nullptr;
    const int64_t cells = call.rows_count * call.dim;
    BackwardCall<S, kFolded> backward{
        unit_call<S, kFolded>(call, plan),
        call.hidden > 0 && call.activation == Activation::kDice,
        call.dim % 2 == 0 && aligned_for<2, S>({query_of<S>(call, plan.work), call.grad_pooled}) &&
            (shared_rows ? aligned_for<2, float>({call.grad_pairs}) : aligned_for<2, S>({call.grad_rows})),
        plan,
        kFolded ? none : packed(plan.keys_transposed, sizes.padded[0], call.dim),
        kFolded ? none : packed(plan.products_transposed, sizes.padded[0], call.dim),
        Global<const uint32_t>(kFolded ? carved<uint32_t>(call.workspace, plan.fold.transposed) : nullptr,
                               plan.fold.chunk * plan.fold.transposed_words),
        {transposed(0), transposed(1), transposed(2)},
        Global<const float>(call.dice_training ? carved<float>(call.workspace, plan.statistics) : nullptr,
                            2 * sizes.padded_sum),
        Global<const S>(static_cast<const S*>(call.grad_pooled), call.queries * call.dim),
        Global<const float>(call.grad_pair_weights, call.total_pairs),
        Global<const int64_t>(carved<int64_t>(call.workspace, plan.work.pair_first), call.queries + 1),
        Global<const double>(call.logsumexp, call.queries),
        Global<const float>(carved<float>(call.workspace, plan.dots), call.queries),
        Global<S>(shared_rows ? nullptr : static_cast<S*>(call.grad_rows), cells),
        Global<float>(shared_rows ? static_cast<float*>(call.grad_rows) : nullptr, cells),
        Global<float>(call.grad_pairs, call.pairs * call.dim),
        floats(plan.partials, plan.blocks * 2 * plan.query_width),
        floats(plan.constants_gradient, call.queries * sizes.padded[0]),
        kFolded ? floats(plan.fold.gradients, plan.fold.chunk * plan.fold.cells)
                : floats(plan.query_gradient, call.queries * call.dim),
        floats(plan.gradients, plan.blocks * plan.gradient_size),
        floats(plan.columns, plan.blocks * plan.columns_size)};
    const auto pass = [&](int statistics_layer, const auto& after) {
        launch_over_tiles<kFolded>("local_activation_backward", unit_backward<Math, kFolded>, call, plan, backward,
                                   statistics_layer, stream, after);
    };
    for (int layer = sizes.layers - 1; call.dice_training && layer >= 0; --layer) {
        pass(layer, [](Chunk) {});
        finish_backward_statistics(call, plan, layer, stream);
    }
    pass(-1, [&](Chunk chunk) {
        join_query_gradients(call, plan, chunk, stream);
        if constexpr (kFolded) unfold(call, plan, chunk, stream);
    });
}

}  // namespace

LaunchPlan local_activation_backward_plan(const LocalActivation& call, const DeviceLimits& device) {
    const BackwardPlan plan = plan_backward(call, device);
    return launch_plan(plan, plan.gradient_in_shared);
}

int64_t local_activation_backward_workspace(const LocalActivation& call) {
    return plan_backward(call, device_limits()).workspace_bytes;
}

void local_activation_backward(const LocalActivation& call, Stream stream) {
    const BackwardPlan plan = plan_backward(call, device_limits());
    with_prepared_unit(call, plan, stream, [&](auto math, auto folded) {
        prepare_backward(call, plan, stream);
        run_backward<decltype(math), folded()>(call, plan, stream);
    });
    finish_backward(call, plan, stream);
}

}  // namespace din_kernels::cuda
