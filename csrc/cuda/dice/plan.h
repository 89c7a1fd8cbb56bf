// Launch arithmetic of dice, plain C++.
//
// Block (x, y) takes chunk x of the rows and stripe y of the channels. Its 256 threads stand `lanes` side by side along
// a row, each with `width` neighbouring channels, and in 256 / lanes groups, each of which takes every (256 / lanes)-th
// row of the chunk:
//
//                      stripe 0                 stripe 1
//               lane 0   lane 1  ...     |   lane 0   lane 1  ...
//             +--------+--------+--------+--------+--------+----
//   chunk 0   | group 0: rows 0, groups, 2 groups, ...              rows_per_chunk rows
//             | group 1: rows 1, groups + 1, ...
//             +--------+--------+--------+--------+--------+----
//   chunk 1   |   ...
#pragma once

#include <algorithm>

#include "common/workspace.h"

namespace din_kernels::cuda {

constexpr int kDiceThreads = 256;

// Chunks do not depend on the device, so neither do the sums over them.
struct DicePlan {
    int64_t chunks, rows_per_chunk;
    int lanes;
    int64_t stripes;                     // of lanes * width channels
    int64_t partials, row_counts, sums;  // byte offsets in the workspace: [chunks, 3, C], [chunks], [3, C]
    int64_t bytes;
};

inline DicePlan plan_dice(int64_t rows, int64_t channels, int width) {
    DicePlan plan{};
    // 64 rows keep a chunk's partial sums small beside it. 512 chunks are 4 blocks on each of 128 multiprocessors. A
    // chunk's rows are counted in fp32, so there are at most 2^24 of them.
    plan.chunks = std::clamp<int64_t>(ceil_div(rows, 64), 1, std::max<int64_t>(512, ceil_div(rows, 1 << 24)));
    plan.rows_per_chunk = ceil_div(rows, plan.chunks);
    const int64_t vectors = ceil_div(channels, width);
    for (plan.lanes = 1; plan.lanes < 32 && plan.lanes < vectors;) plan.lanes *= 2;
    plan.stripes = ceil_div(vectors, plan.lanes);
    Carve carve;
    plan.partials = carve.add(plan.chunks * 3 * channels, 4);
    plan.row_counts = carve.add(plan.chunks, 4);
    plan.sums = carve.add(3 * channels, 4);
    plan.bytes = carve.bytes();
    return plan;
}

}  // namespace din_kernels::cuda
