// Launch arithmetic of mba_penalty, plain C++.
#pragma once

#include <algorithm>

#include "common/unique_ids.h"

namespace din_kernels::cuda {

constexpr int kPenaltyThreads = 256, kPenaltyWarps = kPenaltyThreads / 32;

struct MbaPenaltyPlan {
    UniquePlan unique;
    int64_t blocks;    // of the pass over the unique rows
    int64_t partials;  // byte offset of their sums
    int64_t bytes;     // of the workspace
};

inline MbaPenaltyPlan plan_mba_penalty(int64_t rows, int64_t entries) {
    Carve carve;
    MbaPenaltyPlan plan{};
    plan.unique = plan_unique(rows, carve);
    // A warp per row, in up to 8 blocks on each of 132 multiprocessors. The device's own number of multiprocessors does
    // not count, so that the sum is the same on all devices.
    plan.blocks = std::clamp<int64_t>(ceil_div(entries, kPenaltyWarps), 1, 1056);
    plan.partials = carve.add(plan.blocks, 8);
    plan.bytes = carve.bytes();
    return plan;
}

}  // namespace din_kernels::cuda
