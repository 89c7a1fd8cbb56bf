// Backward of the local activation unit on the tiles of the forward: persistent blocks compute a tile's forward again,
// keep the sums of the weights' gradients over all their tiles, and write one partial each. With g the gradient of
// pooled, per pair
//   dw = <g, k> + gw,   ds = scale dw  or  scale w (dw - sum_r w_r dw_r)        score_gradient.cuh
//   dz of the last layer = ds w_out act'(z),   of the one before (dz W) act'(z), ...     layer_gradient.cuh
//   dk = w g + dz1 (Wk - Wd) + q (dz1 Wp)                                       row_gradient.cuh
//   dq += k (dz1 Wp),   dc += dz1                                               candidate_gradient.cuh
// and folded
//   dk = w g + dz1 A_i,   dA_i += dz1^T k,   dc += dz1
#include "local_activation/backward_finish.h"
#include "local_activation/backward_prepare.h"
#include "local_activation/candidate_gradient.cuh"
#include "local_activation/layer_gradient.cuh"
#include "local_activation/row_gradient.cuh"
#include "local_activation/score_gradient.cuh"
#include "local_activation/tile_launch.cuh"
#include "local_activation/weight_gradient.cuh"

namespace din_kernels::cuda {
namespace {

// The sums of a block's columns, over all its tiles.
template <typename S, bool kFolded>
struct ColumnSums {
    const BackwardCall<S, kFolded>& call;
    const Shared<float>& sums;  // [columns_size]

    // Begins with zeros, or with the sums that the chunk before left in the workspace.
    __device__ void start() const {
        for (int64_t e = threadIdx.x; e < call.plan.columns_size; e += blockDim.x)
            sums.store(int(e), call.resume ? call.columns[first() + e] : 0.0f);
    }
    // The gradient of the output's bias is the sum of ds.
    __device__ void add_bias(const Shared<float>& ds, int valid) const {
        if (threadIdx.x != 0) return;
        const int bias = int(call.plan.columns_size - 1);
        float sum = sums[bias];
        for (int row = 0; row < valid; ++row) sum += ds[row];
        sums.store(bias, sum);
    }
    __device__ void to_workspace() const {
        for (int64_t e = threadIdx.x; e < call.plan.columns_size; e += blockDim.x)
            call.columns.store(first() + e, sums[int(e)]);
    }

 private:
    __device__ int64_t first() const { return int64_t(blockIdx.x) * call.plan.columns_size; }
};

template <typename Math, bool kFolded>
__global__ void __launch_bounds__(128, 1)
    local_activation_backward(const BackwardCall<typename Math::Storage, kFolded> call) {
    using S = typename Math::Storage;
    const Sizes& sizes = call.weights.sizes;
    const TileShared& at = call.plan.tile;
    const TileLoader<S, kFolded>& loader = call.loader;
    const TileMlp<Math, kFolded> mlp{call, at};
    const BackwardShared shared{call.plan};
    const Shared<float> score = shared.floats(at.score, at.rows), all_columns = shared.column_sums();
    const ColumnSums<S, kFolded> columns{call, all_columns};
    const GradientSum<S, kFolded> gradient{call};
    const bool everything = call.statistics_layer < 0;  // else the sums that Dice's statistics need, alone
    mlp.clear();
    shared.clear<S>();
    columns.start();
    if (everything) gradient.start();
    __syncthreads();

    const Range range(loader.pairs.slots.total(), at.rows, blockIdx.x, gridDim.x);
    CandidateSums<S, kFolded> candidate_sums{call, range};
    SoftmaxResidual<S, kFolded> residual{call, range};
    for_tiles(loader, range, at.stages, [&](int stage, int64_t slot) __attribute__((always_inline)) {
        const Shared<S> history = loader.history_of(stage);
        const Shared<int> candidates = loader.candidates_of(stage);
        const int valid = loader.valid(slot, range.end, candidates);
        // Forward again: z of every layer, and the scores.
        float part[2] = {0.0f, 0.0f};
        mlp.run(stage, sizes.layers, part, [&](int layer, int group, const auto& sums) {
            store_sums(sums, group, shared.z(layer), sizes.z_stride[layer]);
        });
        mlp.scores(part, [&](int row, float s) { score.store(row, s); });
        __syncwarp();
        // w and ds.
        weigh_rows(call, shared, history, candidates, loader.rows_of(stage), score, slot);
        if (call.softmax) residual.take(candidates, shared.weight(), score, shared.ds(), slot, valid);
        if (kFolded && everything) candidate_sums.open(candidates[0], shared.candidate_sums());
        // dz of each layer downwards, and the gradient of its weight.
        for (int layer = sizes.layers - 1; layer >= 0 && layer >= call.statistics_layer; --layer) {
            LayerGradient<Math, kFolded>(call, shared, layer, candidates).run();
            if (everything) add_layer_gradient(call, mlp, shared, layer, history);
            __syncthreads();
        }
        if (!everything) return;
        // dk of the rows, then the sums over rows.
        RowGradient<Math, kFolded>(call, shared, history, candidates, loader.rows_of(stage), slot)
            .run(candidates[0] - loader.pairs.slots.begin);
        columns.add_bias(shared.ds(), valid);
        __syncthreads();
        candidate_sums.add(candidates, shared.z(0), shared.contribution(), shared.candidate_sums(), slot, valid);
    });
    columns.to_workspace();
    if (!everything) return;
    candidate_sums.finish(shared.candidate_sums());
    gradient.to_workspace();
}

template <typename Math, bool kFolded>
BackwardCall<typename Math::Storage, kFolded> backward_call(const LocalActivation& call, const BackwardPlan& plan) {
    using S = typename Math::Storage;
    const Sizes& sizes = plan.sizes;
    const auto none = no_array<const uint32_t>();
    const auto first = [&](int64_t offset) {
        return kFolded ? none : packed_array(call, sizes, offset, sizes.padded[0], call.dim);
    };
    const auto layer = [&](int l) {
        return l < sizes.layers
                   ? packed_array(call, sizes, plan.transposed.layers[l], sizes.padded[l], sizes.width[l - 1])
                   : none;
    };
    const auto floats = [&](int64_t offset, int64_t size) { return carved_array<float>(call.workspace, offset, size); };
    const auto floats_read = [&](int64_t offset, int64_t size) {
        return carved_array<const float>(call.workspace, offset, size);
    };
    // Candidates that share histories add to fp32 rows.
    const bool shared_rows = call.query_to_user != nullptr;
    const int64_t cells = call.history_rows * call.dim;
    const bool by_two =
        call.dim % 2 == 0 && aligned_for<2, S>({query_rows(call, plan.work), call.grad_pooled}) &&
        (shared_rows ? aligned_for<2, float>({call.grad_pairs}) : aligned_for<2, S>({call.grad_history.values[0]}));
    const int64_t matrix_words = plan.fold.chunk * plan.fold.transposed_words;
    return {
        tile_call<S, kFolded>(call, plan),
        by_two,
        plan,
        first(plan.transposed.weight_k),
        first(plan.transposed.weight_qk),
        kFolded ? carved_array<const uint32_t>(call.workspace, plan.fold.transposed, matrix_words) : none,
        {none, layer(1), layer(2)},
        call.dice_training ? floats_read(plan.statistics, 2 * sizes.padded_sum) : no_array<const float>(),
        Global<const S>(static_cast<const S*>(call.grad_pooled), call.queries * call.dim),
        Global<const float>(fp32(call.grad_pair_weights), call.total_pairs),
        carved_array<const int64_t>(call.workspace, plan.work.pair_first, call.queries + 1),
        Global<const double>(call.logsumexp, call.queries),
        floats_read(plan.dots, call.queries),
        Global<S>(shared_rows ? nullptr : static_cast<S*>(call.grad_history.values[0]), cells),
        Global<float>(shared_rows ? fp32(call.grad_history.values[0]) : nullptr, cells),
        Global<float>(call.grad_pairs, call.pairs * call.dim),
        floats(plan.partials, plan.blocks * 2 * plan.candidate_width),
        floats(plan.constants_gradient, call.queries * sizes.padded[0]),
        kFolded ? floats(plan.fold.gradients, plan.fold.chunk * plan.fold.cells)
                : floats(plan.query_gradient, call.queries * call.dim),
        floats(plan.gradients, plan.blocks * plan.gradient_size),
        floats(plan.columns, plan.blocks * plan.columns_size),
    };
}

// Dice in training takes a pass per layer, from the last one down, for the sums that flow through its statistics. One
// more pass takes everything else.
template <typename Math, bool kFolded>
void run_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    auto backward = backward_call<Math, kFolded>(call, plan);
    const auto pass = [&](int statistics_layer, const auto& after) {
        launch_over_tiles<kFolded>("local_activation_backward", local_activation_backward<Math, kFolded>, call, plan,
                                   backward, statistics_layer, stream, after);
    };
    for (int layer = plan.sizes.layers - 1; call.dice_training && layer >= 0; --layer) {
        pass(layer, [](Chunk) {});
        finish_backward_statistics(call, plan, layer, stream);
    }
    pass(-1, [&](Chunk chunk) {
        join_candidate_gradients(call, plan, chunk, stream);
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
    with_prepared_call(call, plan, stream, [&](auto math, auto folded) {
        prepare_backward(call, plan, stream);
        run_backward<decltype(math), folded()>(call, plan, stream);
    });
    finish_backward(call, plan, stream);
}

}  // namespace din_kernels::cuda
