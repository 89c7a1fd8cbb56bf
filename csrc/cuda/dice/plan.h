// Launch arithmetic of dice, plain C++.
#pragma once

#include <algorithm>

#include "common/workspace.h"

namespace din_kernels::cuda {

constexpr int kDiceThreads = 256;

// A block takes a stripe of channels over a chunk of rows. Chunks do not depend on the device, so neither do sums.
struct DicePlan {
    int64_t chunks, rows_per_chunk;
    int lanes;                           // threads side by side along a row
    int64_t stripes;                     // of lanes * width channels
    int64_t partials, row_counts, sums;  // byte offsets in the workspace: [chunks, 3, C], [chunks], [3, C]
    int64_t bytes;
};

inline DicePlan plan_dice(int64_t rows, int64_t channels, int width) {
    DicePlan plan{};
    // 64 rows keep a chunk's partial sums small beside it; 512 chunks are 4 blocks on each of 128 multiprocessors; a
    // chunk's rows are counted in fp32, so they are at most 2^24.
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
