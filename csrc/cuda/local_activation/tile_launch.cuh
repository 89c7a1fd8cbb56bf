// From a call to the launches of its kernels over the tiles, alike for forward and backward.
#pragma once

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/fold.h"
#include "local_activation/mlp.cuh"
#include "local_activation/prepare.h"

namespace din_kernels::cuda {

template <typename Plan>
LaunchPlan launch_plan(const Plan& plan, bool gradient_in_shared) {
    return {plan.tile.rows,       plan.tile.stages,   32 * plan.tile.warps, plan.blocks,    plan.bytes,
            plan.workspace_bytes, gradient_in_shared, plan.sizes.folded,    plan.fold.chunk};
}

template <typename S, bool kFolded, typename Plan>
TileCall<S, kFolded> tile_call(const LocalActivation& call, const Plan& plan) {
    return {mlp_weights(call, plan.sizes, plan.work, plan.fold),
            tile_loader<S, kFolded>(call, plan.sizes, plan.tile, plan.work),
            query_of<S>(call, plan.work),
            call.dim % 4 == 0 && aligned_for<4, S>({query_rows(call, plan.work)}),
            call.normalize == Normalize::kSoftmax,
            float(call.scale),
            Global<const int64_t>(call.pair_begin, call.queries)};
}

// Packs weights, counts pairs and makes c_i, then calls body(Math{}, folded) with the call's arithmetic and variant.
template <typename Plan, typename Body>
void with_prepared_call(const LocalActivation& call, const Plan& plan, Stream stream, const Body& body) {
    prepare(call, plan.sizes, plan.work, plan.tile.rows, stream);
    if (plan.sizes.folded) prepare_fold(call, plan.sizes, plan.fold, stream);
    with_math(call, [&](auto math) {
        if (plan.sizes.folded)
            body(math, std::true_type{});
        else
            body(math, std::false_type{});
    });
}

// One pass over all tiles, a chunk of candidates at a time, each of which after(chunk) follows.
template <bool kFolded, typename Plan, typename Parameters, typename After>
void launch_over_tiles(const char* name, void (*kernel)(Parameters), const LocalActivation& call, const Plan& plan,
                       Parameters& parameters, int statistics_layer, Stream stream, const After& after) {
    parameters.statistics_layer = statistics_layer;
    for_chunks(call, plan.fold, [&](Chunk chunk) {
        if constexpr (kFolded) fold(call, plan.sizes, plan.work, plan.fold, chunk, stream);
        parameters.loader.pairs.slots = slots_of(call, plan.work, chunk), parameters.resume = chunk.begin > 0;
        launch(name, kernel, Grid{plan.blocks}, 32 * plan.tile.warps, size_t(plan.bytes), stream, parameters);
        after(chunk);
    });
}

}  // namespace din_kernels::cuda
