// From a call to the launches of its kernels over the tiles, forward's and backward's alike.
#pragma once

#include "common/dispatch.h"
#include "common/launch.cuh"
#include "local_activation/fold.h"
#include "local_activation/dispatch.h"
#include "local_activation/prepare.h"
#include "local_activation/mlp.cuh"

namespace din_kernels::cuda {

template <typename Plan>
LaunchPlan launch_plan(const Plan& plan, bool gradient_in_shared) {
    return {plan.tile.rows,       plan.tile.stages,   32 * plan.tile.warps, plan.blocks,    plan.bytes,
            plan.workspace_bytes, gradient_in_shared, plan.sizes.folded,    plan.fold.chunk};
}

template <typename S, bool kFolded, typename Plan>
UnitCall<S, kFolded> unit_call(const LocalActivation& call, const Plan& plan) {
    const S* const query = query_of<S>(call, plan.work);
    return {unit_weights(call, plan.sizes, plan.work, plan.fold),
            tile_loader<S, kFolded>(call, plan.sizes, plan.tile, plan.work),
            Global<const S>(query, call.queries * call.dim),
            call.dim % 4 == 0 && aligned_for<4, S>({query}),
            call.normalize == Normalize::kSoftmax,
            call.scale,
            Global<const int64_t>(call.pair_begin, call.queries)};
}

// Weights packed, pairs counted, c_i made; then body(Math{}, folded) with the call's arithmetic and variant.
template <typename Plan, typename Body>
void with_prepared_unit(const LocalActivation& call, const Plan& plan, Stream stream, const Body& body) {
    prepare_unit(call, plan.sizes, plan.work, plan.tile.rows, stream);
    if (plan.sizes.folded) prepare_fold(call, plan.sizes, plan.fold, stream);
    with_math(call, [&](auto math) {
        if (plan.sizes.folded)
            body(math, std::true_type{});
        else
            body(math, std::false_type{});
    });
}

// One pass over all tiles, a chunk of candidates at a time, each followed by after(chunk).
template <bool kFolded, typename Plan, typename Unit, typename After>
void launch_over_tiles(const char* name, void (*kernel)(Unit), const LocalActivation& call, const Plan& plan,
                       Unit& unit, int statistics_layer, Stream stream, const After& after) {
    unit.statistics_layer = statistics_layer;
    for_chunks(call, plan.fold, [&](Chunk chunk) {
        if constexpr (kFolded) fold(call, plan.sizes, plan.work, plan.fold, chunk, stream);
        unit.loader.pairs.slots = slots_of(call, plan.work, chunk), unit.resume = chunk.begin > 0;
        launch(name, kernel, Grid{plan.blocks}, 32 * plan.tile.warps, size_t(plan.bytes), stream, unit);
        after(chunk);
    });
}

}  // namespace din_kernels::cuda
