// Shared memory and workspace of the backward kernels: plain C++.
//
// Beside the forward's tile (plan.h) a block of backward has, in its shared memory:
//
//   of the tile          z [rows, H] of every layer, in fp32;  in place of it dz, once the layer's gradient is there
//                        dz [rows, H] narrowed, twice: the layer at hand reads that of the layer behind it
//                        contribution [rows, D], flat calls only: k (dz1 Wp), what a row adds to dq
//                        weight, ds [rows]
//                        scratch [kColumnSums, warps, H]: column sums of each warp
//   of the candidate     candidate_sums: gradient of c_i, and flat that of q_i by q * k
//   of all its tiles     column_sums [kColumnSums, H of all layers] and 1
//                        gradient: sums of the weights' gradients, in the workspace where they do not fit
//
//   gradient, flat       | dWk [padded H1, D]  | dWp [padded H1, D] | dW2 [padded H2, padded H1] | ...
//   gradient, folded     | dA_i [padded H1, D] |                      dW2 [padded H2, padded H1] | ...
//                          of the present candidate
#pragma once

#include "local_activation/plan.h"

namespace din_kernels::cuda {

// Sums over a layer's rows, per channel.
enum ColumnSum { kSumOfDz, kSumOfDparam, kSumOfDu, kSumOfDuU, kSumOfDsH, kColumnSums };

struct BackwardPlan {
    Sizes sizes;
    TileShared tile;
    Workspace work;
    FoldPlan fold;
    int dim8;       // D rounded up to 8
    int widest;     // of the padded widths
    int dz_stride;  // elements between rows of the narrowed dz
    int contribution_stride;
    // Per candidate the gradient of c_i, padded H1, and behind it that of q_i by q * k, D, or folded dA_i, padded H1 *
    // D.
    int candidate_width;
    // The gradients pictured above, rows of layer l gradient_stride[l] apart, the layer from gradient_layer[l] on.
    int gradient_stride[kMaxHidden];
    int64_t gradient_layer[kMaxHidden], gradient_size;
    int64_t columns_size;  // kColumnSums * padded_sum + 1: the last is the output's bias
    // byte offsets in shared memory
    int64_t z[kMaxHidden], dz[2], weight, ds, contribution, scratch, column_sums, candidate_sums, gradient;
    bool gradient_in_shared;  // else summed in the block's part of the workspace
    int64_t bytes;
    int64_t blocks, candidate_blocks;
    // byte offsets in the workspace
    PackedWeights transposed;
    int64_t dots;                // [Q], softmax
    int64_t statistics;          // [2, padded_sum]: means of du and du u
    int64_t partials;            // [blocks, 2, candidate_width]
    int64_t constants_gradient;  // [Q, padded H1]
    int64_t query_gradient;      // [Q, D]: the part of dq that comes by q * k or A_i
    int64_t gradients, columns;  // [blocks, gradient_size] and [blocks, columns_size]
    int64_t weight_q_gradients;  // [candidate_blocks, padded H1, D]
    int64_t gradient_sums, columns_sums, weight_q_sums;
    int64_t workspace_bytes;
};

inline BackwardPlan share_backward(const Sizes& s, int warps, int stages, bool gradient_in_shared) {
    BackwardPlan p{};
    p.sizes = s, p.tile = share_tile(s, warps, stages), p.bytes = p.tile.bytes;
    p.dim8 = int(round_up(s.dim, 8));
    p.candidate_width = int(s.padded[0] + (s.folded ? int64_t(s.padded[0]) * s.dim : s.dim));
    p.gradient_stride[0] = pair_stride(s.dim);
    p.gradient_size = (s.folded ? 1 : 2) * int64_t(s.padded[0]) * p.gradient_stride[0];
    int64_t deepest = 0;
    for (int l = 0; l < s.layers; ++l) {
        p.widest = std::max(p.widest, s.padded[l]);
        deepest = std::max(deepest, round_up(s.padded[l], s.depth));
        if (l == 0) continue;
        p.gradient_stride[l] = pair_stride(s.padded[l - 1]);
        p.gradient_layer[l] = p.gradient_size;
        p.gradient_size += int64_t(s.padded[l]) * p.gradient_stride[l];
    }
    p.dz_stride = conflict_free(deepest, s.element_bytes);
    p.columns_size = kColumnSums * s.padded_sum + 1;
    const auto add = [&](int64_t elements, int element_bytes = 4) {
        const int64_t begin = p.bytes;
        p.bytes += round_up(elements * element_bytes, 16);
        return begin;
    };
    const int64_t rows = p.tile.rows;
    for (int l = 0; l < s.layers; ++l) p.z[l] = add(rows * s.z_stride[l]);
    for (int64_t& dz : p.dz) dz = add(rows * p.dz_stride, s.element_bytes);
    p.weight = add(rows), p.ds = add(rows);
    p.contribution_stride = pair_stride(s.dim);
    if (!s.folded) p.contribution = add(rows * p.contribution_stride);
    p.scratch = add(int64_t(kColumnSums) * p.tile.warps * p.widest);
    p.column_sums = add(p.columns_size), p.candidate_sums = add(s.folded ? s.padded[0] : p.candidate_width);
    p.gradient_in_shared = gradient_in_shared;
    if (gradient_in_shared) p.gradient = add(p.gradient_size);
    return p;
}

inline BackwardPlan plan_backward(const LocalActivation& call, const DeviceLimits& device) {
    const Sizes sizes = sizes_of(call);
    // Sums of the weights' gradients come into shared memory where they leave room for 32 rows or more: 16 rows would
    // leave the places of three of four warps empty.
    BackwardPlan plan = share_backward(sizes, 4, 2, true);
    if (plan.bytes > device.shared_per_block) plan = share_backward(sizes, 2, 2, true);
    if (plan.bytes > device.shared_per_block)
        plan = first_that_fits<BackwardPlan>(
            "local_activation_backward", device.shared_per_block,
            [&](int warps, int stages) { return share_backward(sizes, warps, stages, false); });
    plan.blocks = persistent_blocks(device, plan.bytes);
    plan.candidate_blocks = std::clamp<int64_t>(ceil_div(call.queries, kRowsPerWarp), 1, 2 * device.multiprocessors);
    Carve carve;
    plan.work = plan_workspace(call, sizes, carve);
    plan.fold = plan_fold(call, sizes, plan.tile.warps, true, carve);
    plan.transposed = plan_weights(sizes, true, carve);
    plan.dots = carve.add(call.queries, 4);
    plan.statistics = carve.add(2 * sizes.padded_sum, 4);
    plan.partials = carve.add(plan.blocks * 2 * plan.candidate_width, 4);
    plan.constants_gradient = carve.add(call.queries * sizes.padded[0], 4);
    plan.query_gradient = carve.add(call.queries * call.dim, 4);
    plan.gradients = carve.add(plan.blocks * plan.gradient_size, 4);
    plan.columns = carve.add(plan.blocks * plan.columns_size, 4);
    const int64_t weight_q_size = int64_t(sizes.padded[0]) * call.dim;
    plan.weight_q_gradients = carve.add(plan.candidate_blocks * weight_q_size, 4);
    plan.gradient_sums = carve.add(plan.gradient_size, 4);
    plan.columns_sums = carve.add(plan.columns_size, 4);
    plan.weight_q_sums = carve.add(weight_q_size, 4);
    plan.workspace_bytes = carve.bytes();
    return plan;
}

}  // namespace din_kernels::cuda
