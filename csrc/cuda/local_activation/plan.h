// Sizes of the unit's tiles, shared memory and workspace: plain C++, tested for every shape.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "din_kernels/cuda/local_activation.h"
#include "common/unique_ids.h"
#include "common/workspace.h"

namespace din_kernels::cuda {

constexpr int64_t round_up(int64_t value, int64_t to) { return ceil_div(value, to) * to; }

// A folded call makes A_i of the first layer once per candidate, z1 = A_i k + c_i, and its tiles belong to one
// candidate each. Half a tile of 64 rows is then empty on average, an eighth of a history of 256; and A_i costs as much
// memory as D * H1 / D = 80 of its rows, written and read once. Such histories get it, and outer features, which have
// no other form.
constexpr int64_t kFoldFrom = 256;
inline bool folds(const LocalActivation& call) {
    return call.features == Features::kOuter || (call.users > 0 && call.capacity >= kFoldFrom * call.users);
}

// What a call's shapes come to, whatever the tile. A unit without hidden layer is one layer of width 1, its activation
// the identity, its output weight 1.
struct UnitSizes {
    int element_bytes, depth;  // of storage; k per step of a product
    int layers;
    int width[kMaxHidden], padded[kMaxHidden];  // H, H rounded up to 8
    int steps[kMaxHidden];                      // of the layer's product; of layer 0 for each half of [k, q * k]
    int stride[kMaxHidden];                     // elements between rows of the layer's input tile
    int z_stride[kMaxHidden];                   // elements between rows of its z, where shared memory has them
    int padded_sum, padded_first[kMaxHidden];   // of the padded widths, laid side by side
    int dim, dim_padded;
    bool folded;
};

// Rows 16 bytes apart modulo 32: the 8 rows of an ldmatrix matrix then lie in different banks.
inline int conflict_free(int64_t elements, int element_bytes) {
    return int((ceil_div(elements * element_bytes, 16) | 1) * 16 / element_bytes);
}

// Rows of fp32 that lanes read and write two neighbours at a time, as sums lie in registers: 8 or 24 words apart modulo
// 32, the four rows of half a warp lie in different banks.
inline int pair_stride(int64_t elements) { return int((elements + 7) / 16 * 16 + 8); }

// Candidates of a call: a tile numbers them in 32 bits. Pairs are counted in 64.
constexpr int64_t kMaxQueries = (int64_t(1) << 31) - 1;

inline UnitSizes unit_sizes(const LocalActivation& call) {
    if (call.queries > kMaxQueries)
        throw std::invalid_argument("query must have at most " + std::to_string(kMaxQueries) +
                                    " rows for the CUDA kernels, got " + std::to_string(call.queries));
    UnitSizes s{};
    s.element_bytes = call.dtype == DType::kFloat ? 4 : 2;
    s.depth = call.dtype != DType::kFloat ? 16 : call.precision == Precision::kTensorCores ? 8 : 4;
    s.layers = std::max(call.hidden, 1), s.folded = folds(call);
    s.dim = int(call.dim), s.dim_padded = int(round_up(call.dim, s.depth));
    for (int l = 0; l < s.layers; ++l) {
        s.width[l] = call.hidden == 0 ? 1 : int(call.layers[l].width);
        s.padded[l] = int(round_up(s.width[l], 8));
        const int64_t in = l == 0 ? s.dim_padded : round_up(s.padded[l - 1], s.depth);
        s.steps[l] = int(in / s.depth);
        s.stride[l] = conflict_free(in, s.element_bytes);
        s.z_stride[l] = pair_stride(s.padded[l]);
        s.padded_first[l] = s.padded_sum;
        s.padded_sum += s.padded[l];
    }
    return s;
}

// Byte offsets in shared memory of what forward and backward have in common.
struct TileShared {
    int rows, warps, stages;                                // rows of a tile: 16 per warp
    int64_t keys, key_bytes, products, hidden[kMaxHidden];  // keys: one tile per stage; hidden: input of layer l
    int64_t candidate, row, window, score;
    int64_t bytes;
};

constexpr int kRowsPerWarp = 16;

inline TileShared share_tile(const UnitSizes& s, int warps, int stages) {
    TileShared t{};
    t.warps = warps, t.rows = warps * kRowsPerWarp, t.stages = stages;
    const auto add = [&](int64_t bytes) {
        const int64_t begin = t.bytes;
        t.bytes += round_up(bytes, 16);
        return begin;
    };
    t.key_bytes = round_up(int64_t(t.rows) * s.stride[0] * s.element_bytes, 16);
    t.keys = add(stages * t.key_bytes);
    if (!s.folded) t.products = add(t.key_bytes);
    for (int l = 1; l < s.layers; ++l) t.hidden[l] = add(int64_t(t.rows) * s.stride[l] * s.element_bytes);
    t.candidate = add(int64_t(stages) * t.rows * 4);
    t.row = add(int64_t(stages) * t.rows * 8);
    t.window = add((t.rows + 1) * 4);
    t.score = add(t.rows * 4);
    return t;
}

// The first of the choices, from the largest tile down, whose shared memory fits.
template <typename Plan, typename Make>
Plan first_that_fits(const char* kernel, int64_t limit, const Make& make) {
    Plan plan{};
    for (const auto& [warps, stages] : {std::pair{4, 2}, {2, 2}, {1, 2}, {1, 1}}) {
        plan = make(warps, stages);
        if (plan.bytes <= limit) return plan;
    }
    throw LaunchError(std::string("kernel ") + kernel + " needs " + std::to_string(plan.bytes) +
                      " bytes of shared memory per block for 16 rows of this width, the limit is " +
                      std::to_string(limit));
}

// Blocks of a persistent grid: as many as run at once, at most 4 on a multiprocessor.
inline int64_t persistent_blocks(const DeviceLimits& device, int64_t shared_bytes) {
    const int64_t fit = (device.shared_per_block + 1024) / (shared_bytes + 1024);
    return device.multiprocessors * std::clamp<int64_t>(fit, 1, 4);
}

// Matrices packed for products, see products.cuh: [in] x [out] of a product's right side.
struct PackedSizes {
    int64_t tiles, steps, words;
};
inline PackedSizes packed_sizes(const UnitSizes& s, int64_t in, int64_t out) {
    PackedSizes p{ceil_div(out, 8), ceil_div(in, s.depth), 0};
    p.words = p.tiles * p.steps * (s.element_bytes == 2 ? 64 : 8 * s.depth);
    return p;
}

// Byte offsets in the workspace of what forward and backward have in common.
struct UnitWorkspace {
    int64_t lengths, pair_first, tile_sums;  // [Q + 1] in 64 bits: pairs of each candidate, and those before it
    int64_t slot_first;                      // [Q + 1]: the same with whole tiles, where the call is folded
    int64_t query;                           // [Q, D], only where the query comes from several tables
    int64_t constants;                       // [Q, padded H1] of fp32: c_i
    int64_t params;                          // 4 arrays [padded_sum] of fp32: bias, slope or alpha, mean, rstd
    int64_t output;                          // [padded H of the last layer + 1] of fp32: weight and bias
    int64_t keys_matrix, products_matrix, query_matrix, layer_matrix[kMaxHidden];
};

inline UnitWorkspace unit_workspace(const LocalActivation& call, const UnitSizes& s, Carve& carve) {
    UnitWorkspace w{};
    w.lengths = carve.add(call.queries + 1, 8);
    w.pair_first = carve.add(call.queries + 1, 8);
    w.tile_sums = carve.add(ceil_div(call.queries + 1, kWordsPerTile), 8);
    w.slot_first = s.folded ? carve.add(call.queries + 1, 8) : w.pair_first;
    w.query = carve.add(call.query.ids[0].data ? call.queries * call.dim : 0, s.element_bytes);
    w.constants = carve.add(call.queries * s.padded[0], 4);
    w.params = carve.add(4 * s.padded_sum, 4);
    w.output = carve.add(s.padded[s.layers - 1] + 1, 4);
    const auto matrix = [&](int64_t in, int64_t out) { return carve.add(packed_sizes(s, in, out).words, 4); };
    if (!s.folded) {
        w.keys_matrix = matrix(s.dim, s.width[0]);
        w.products_matrix = matrix(s.dim, s.width[0]);
    }
    w.query_matrix = matrix(s.dim, s.width[0]);
    for (int l = 1; l < s.layers; ++l) w.layer_matrix[l] = matrix(s.padded[l - 1], s.width[l]);
    return w;
}

// Candidates begin .. end, which one launch over the tiles serves.
struct Chunk {
    int64_t begin, end;
};

// What a folded call has per candidate, for `chunk` of them at a time: memory does not grow with Q * D * H1.
constexpr int64_t kFoldShares = 16;  // of a chunk's candidates, whose dA_i are summed apart

struct FoldPlan {
    int warps;                        // of a block that makes A_i: 16 candidates each
    int64_t chunk;                    // all candidates where the call is not folded
    int parts;                        // of A_i, which add up to it: A_i rounded, and in two parts the rest
    int64_t words, transposed_words;  // of a part of A_i [D, H1] and, for backward, of A_i^T [H1, D], packed
    int64_t cells;                    // of dA_i [padded H1, D]
    int64_t outer_words;              // of Wo[h] [D, D], packed; outer features alone
    // byte offsets in the workspace
    int64_t matrices, transposed, gradients;  // [chunk, parts, words], and [chunk, ...] of the others
    int64_t outer, outer_transposed;          // [H1, outer_words]: B[j, d] = Wo[h, j, d], and its transpose
    int64_t shares, sums;                     // [kFoldShares, 2, cells] and [2, cells]: of dA_i and diag(q_i) dA_i
};

// `warps`: of the blocks over the tiles; as many candidates' queries need less shared memory than their tile does.
inline FoldPlan plan_fold(const LocalActivation& call, const UnitSizes& s, int warps, bool backward, Carve& carve) {
    FoldPlan p{};
    p.warps = warps;
    p.chunk = std::max<int64_t>(call.queries, 1);
    if (!s.folded) return p;
    // Outer features in half precision: A_i's rounding is the same for all of a candidate's behaviours and would add up
    // over them, where the reference rounds every q_j k_d on its own. A_i^T does with one part, since no sum is taken
    // over its products with dz1; so do concat and product, where the reference rounds q - k and q * k, terms as large.
    p.parts = call.features == Features::kOuter && s.element_bytes == 2 ? 2 : 1;
    p.words = packed_sizes(s, s.dim, s.width[0]).words;
    p.cells = int64_t(s.padded[0]) * s.dim;
    if (backward) p.transposed_words = packed_sizes(s, s.padded[0], s.dim).words;
    const int64_t bytes = 4 * (p.parts * p.words + p.transposed_words + (backward ? p.cells : 0));
    p.chunk = std::clamp<int64_t>(call.chunk_bytes / bytes, 1, p.chunk);
    p.matrices = carve.add(p.chunk * p.parts * p.words, 4);
    if (call.features == Features::kOuter) {
        p.outer_words = packed_sizes(s, s.dim, s.dim).words;
        p.outer = carve.add(s.width[0] * p.outer_words, 4);
        if (backward) p.outer_transposed = carve.add(s.width[0] * p.outer_words, 4);
    }
    if (!backward) return p;
    p.transposed = carve.add(p.chunk * p.transposed_words, 4);
    p.gradients = carve.add(p.chunk * p.cells, 4);
    p.shares = carve.add(kFoldShares * 2 * p.cells, 4);
    p.sums = carve.add(2 * p.cells, 4);
    return p;
}

struct ForwardPlan {
    UnitSizes sizes;
    TileShared tile;
    UnitWorkspace work;
    FoldPlan fold;
    int64_t weight, top, pooled, z, mean, square;  // byte offsets in shared memory
    int64_t bytes;                                 // of shared memory
    int64_t blocks;
    int64_t normalizers, partials, statistics;  // byte offsets in the workspace
    int64_t workspace_bytes;
};

inline ForwardPlan plan_forward(const LocalActivation& call, const DeviceLimits& device) {
    const UnitSizes sizes = unit_sizes(call);
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
    plan.work = unit_workspace(call, sizes, carve);
    plan.fold = plan_fold(call, sizes, plan.tile.warps, false, carve);
    plan.normalizers = carve.add(call.normalize == Normalize::kSoftmax ? 2 * call.queries : 0, 4);
    // Of candidates that a block shares with another: running maximum, sum, and pooled row. Two per block.
    plan.partials = carve.add(plan.blocks * 2 * (call.dim + 2), 4);
    plan.statistics = carve.add(call.dice_training ? plan.blocks * (2 * sizes.padded_sum + 1) : 0, 4);
    plan.workspace_bytes = carve.bytes();
    return plan;
}

}  // namespace din_kernels::cuda
