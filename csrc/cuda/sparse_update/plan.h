// Launch arithmetic of sparse_update, plain C++.
#pragma once

#include "common/unique_ids.h"

namespace din_kernels::cuda {

// One warp sums this many entries, in the order of groups, ahead for the groups that are longer. So a row that is in
// every sample (of a small table) is summed by many warps.
constexpr int64_t kUpdateChunk = 64;
constexpr int kUpdateThreads = 256, kUpdateWarps = kUpdateThreads / 32;

struct SparseUpdatePlan {
    UniquePlan unique;
    int64_t chunks, count_tiles;
    // byte offsets in the workspace
    int64_t unique_ids, unique_count, group_size, group_begin, tile_sums, ticket, order, partials;
    int64_t bytes;
};

inline SparseUpdatePlan plan_sparse_update(int64_t rows, int64_t dim, int64_t entries) {
    Carve carve;
    SparseUpdatePlan plan{};
    plan.unique = plan_unique(rows, carve);
    plan.chunks = ceil_div(entries, kUpdateChunk);
    plan.count_tiles = ceil_div(entries, kWordsPerTile);
    plan.unique_ids = carve.add(entries, 8);
    plan.unique_count = carve.add(1, 8);
    plan.group_size = carve.add(entries, 4);
    plan.group_begin = carve.add(entries, 4);
    plan.tile_sums = carve.add(plan.count_tiles, 4);
    plan.ticket = carve.add(entries, 4);
    plan.order = carve.add(entries, 4);
    plan.partials = carve.add(2 * plan.chunks * dim, 4);
    plan.bytes = carve.bytes();
    return plan;
}

}  // namespace din_kernels::cuda
