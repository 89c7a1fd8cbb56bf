// Shared memory and workspace of the forward kernel: plain C++.
#pragma once

#include "local_activation/plan.h"

namespace din_kernels::cuda {

struct ForwardPlan {
    Sizes sizes;
    TileShared tile;
    Workspace work;
    FoldPlan fold;
    // byte offsets in shared memory
    int64_t weight, top;      // [rows], see weigh in pooling.cuh
    int64_t pooled;           // [D]: the running sum of the present candidate
    int64_t z, mean, square;  // [rows, z_stride], [H], [H] of a layer; Dice in training alone
    int64_t bytes;            // of shared memory
    int64_t blocks;
    // byte offsets in the workspace
    int64_t normalizers;  // [Q, 2], softmax
    int64_t partials;     // [blocks, 2, D + 2], see Pooling
    int64_t statistics;   // [blocks, 2 padded_sum + 1]
    int64_t workspace_bytes;
};

inline ForwardPlan plan_forward(const LocalActivation& call, const DeviceLimits& device) {
    const Sizes sizes = sizes_of(call);
    ForwardPlan plan =
        first_that_fits<ForwardPlan>("local_activation_forward", device.shared_per_block, [&](int warps, int stages) {
            ForwardPlan p{};
            p.sizes = sizes, p.tile = share_tile(sizes, warps, stages);
            p.bytes = p.tile.bytes;
            const auto add = [&](int64_t elements) {
                const int64_t begin = p.bytes;
                p.bytes += round_up(elements * 4, 16);
                return begin;
            };
            p.weight = add(p.tile.rows), p.top = add(p.tile.rows), p.pooled = add(sizes.dim);
            if (call.dice_training) {
                const int widest = *std::max_element(sizes.padded, sizes.padded + sizes.layers);
                p.z = add(int64_t(p.tile.rows) * pair_stride(widest)), p.mean = add(widest), p.square = add(widest);
            }
            return p;
        });
    plan.blocks = persistent_blocks(device, plan.bytes);
    Carve carve;
    plan.work = plan_workspace(call, sizes, carve);
    plan.fold = plan_fold(call, sizes, plan.tile.warps, false, carve);
    plan.normalizers = carve.add(call.normalize == Normalize::kSoftmax ? 2 * call.queries : 0, 4);
    // A block leaves the running maximum, sum and pooled row of at most two candidates that it shares with others.
    plan.partials = carve.add(plan.blocks * 2 * (call.dim + 2), 4);
    plan.statistics = carve.add(call.dice_training ? plan.blocks * (2 * sizes.padded_sum + 1) : 0, 4);
    plan.workspace_bytes = carve.bytes();
    return plan;
}

}  // namespace din_kernels::cuda
