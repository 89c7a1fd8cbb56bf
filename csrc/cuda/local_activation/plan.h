// Launch arithmetic that forward and backward of the unit share, plain C++ and tested for every shape: sizes of a call,
// a tile's shared memory, and the workspace.
//
// A tile is 64 (32, 16) rows, one per pair of a candidate and a behaviour; each of its warps owns 16 of them. A
// persistent block goes through consecutive tiles, and what a tile needs lies in the block's shared memory
// (TileShared):
//
//                  D columns                H1 columns, padded        one value per row
//              +-------------------+       +----------------+       candidate   whose pair it is, -1: no pair
//   warp 0     | k    (history,    |       | h1 = act(z1)   |       row         of the source that k comes from
//    16 rows   |  one tile per     |  ->   |  (hidden[1],   |  ->   score       s
//   - - - - -  |  stage)           |       |  input of      |
//   warp 1     | q * k (products,  |       |  layer 1)      |       window [rows + 1], of a block alone:
//    16 rows   |  flat calls only) |       |                |       first slots of the candidates from the cursor on
//   - - - - -  +-------------------+       +----------------+
//    ...         stride[0]                   stride[1]
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/unique_ids.h"
#include "common/workspace.h"
#include "din_kernels/cuda/local_activation.h"

namespace din_kernels::cuda {

constexpr int64_t round_up(int64_t value, int64_t to) { return ceil_div(value, to) * to; }

// A folded call makes A_i of the first layer once per candidate, z1 = A_i k + c_i, and each of its tiles belongs to one
// candidate. Half a tile of 64 rows is then empty on average, an eighth of a history of 256. A_i costs as much memory
// as D * H1 / D = 80 rows of the history, written and read once. Histories of this length are folded, and so are outer
// features, which have no other form.
constexpr int64_t kFoldFrom = 256;
inline bool folds(const LocalActivation& call) {
    return call.features == Features::kOuter || (call.users > 0 && call.capacity >= kFoldFrom * call.users);
}

// A unit without hidden layer has the score itself as its only channel.
inline Activation activation_of(const LocalActivation& call) {
    return call.hidden > 0 ? call.activation : Activation::kIdentity;
}

// Sizes that follow from a call's shapes, whatever the tile. A unit without hidden layer is one layer of width 1, whose
// activation is the identity and whose output weight is 1.
struct Sizes {
    int element_bytes;  // of storage
    int depth;          // columns of the left side that one step of a product takes
    int layers;
    int width[kMaxHidden], padded[kMaxHidden];  // H, and H rounded up to 8
    int steps[kMaxHidden];                      // of the layer's product; layer 0 takes them for k and again for q * k
    int stride[kMaxHidden];                     // elements between rows of the layer's input tile
    int z_stride[kMaxHidden];                   // elements between rows of the layer's z in shared memory
    int width_sum, width_first[kMaxHidden];     // sum of the widths, and where a layer begins among them all
    int padded_sum, padded_first[kMaxHidden];   // the same of the padded widths
    int dim, dim_padded;
    bool folded;
};

// Rows lie an odd multiple of 16 bytes apart, so that the 8 rows of an ldmatrix matrix lie in different banks.
inline int conflict_free(int64_t elements, int element_bytes) {
    return int((ceil_div(elements * element_bytes, 16) | 1) * 16 / element_bytes);
}

// Lanes read and write fp32 rows two neighbours at a time, as sums lie in registers. Rows 8 or 24 words apart modulo 32
// put the four rows of half a warp in different banks.
inline int pair_stride(int64_t elements) { return int((elements + 7) / 16 * 16 + 8); }

// A tile numbers candidates in 32 bits; pairs are counted in 64.
constexpr int64_t kMaxQueries = (int64_t(1) << 31) - 1;

inline Sizes sizes_of(const LocalActivation& call) {
    if (call.queries > kMaxQueries)
        throw std::invalid_argument("query must have at most " + std::to_string(kMaxQueries) +
                                    " rows for the CUDA kernels, got " + std::to_string(call.queries));
    Sizes s{};
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
        s.width_first[l] = s.width_sum, s.width_sum += s.width[l];
        s.padded_first[l] = s.padded_sum, s.padded_sum += s.padded[l];
    }
    return s;
}

// Byte offsets in shared memory of the arrays that forward and backward have in common, pictured above.
struct TileShared {
    int rows, warps, stages;         // 16 rows per warp; stages are tiles of the history that can be there at once
    int64_t history, history_bytes;  // of the first stage, and bytes from one stage to the next
    int64_t products;
    int64_t hidden[kMaxHidden];  // the input of layer l, from layer 1 on
    int64_t candidate, row;      // one array per stage
    int64_t window, score;
    int64_t bytes;
};

constexpr int kRowsPerWarp = 16;

inline TileShared share_tile(const Sizes& s, int warps, int stages) {
    TileShared t{};
    t.warps = warps, t.rows = warps * kRowsPerWarp, t.stages = stages;
    const auto add = [&](int64_t bytes) {
        const int64_t begin = t.bytes;
        t.bytes += round_up(bytes, 16);
        return begin;
    };
    t.history_bytes = round_up(int64_t(t.rows) * s.stride[0] * s.element_bytes, 16);
    t.history = add(stages * t.history_bytes);
    if (!s.folded) t.products = add(t.history_bytes);
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

// A persistent grid has as many blocks as run at once, at most 4 on a multiprocessor.
inline int64_t persistent_blocks(const DeviceLimits& device, int64_t shared_bytes) {
    const int64_t fit = (device.shared_per_block + 1024) / (shared_bytes + 1024);
    return device.multiprocessors * std::clamp<int64_t>(fit, 1, 4);
}

// Tiles, steps and 32-bit words of a matrix [in, out] that is packed as a product's right side, see packed.cuh.
struct PackedSizes {
    int64_t tiles, steps, words;
};
inline PackedSizes packed_sizes(const Sizes& s, int64_t in, int64_t out) {
    PackedSizes p{ceil_div(out, 8), ceil_div(in, s.depth), 0};
    p.words = p.tiles * p.steps * (s.element_bytes == 2 ? 64 : 8 * s.depth);
    return p;
}

// Byte offsets in the workspace of the packed weights, or of their transposes. The first layer has those of the rows
// alone where the call is not folded.
struct PackedWeights {
    int64_t weight_q;             // [D, H1]: Wq + Wd
    int64_t weight_k, weight_qk;  // [D, H1]: Wk - Wd and Wp
    int64_t layers[kMaxHidden];   // [H of l - 1, H of l], from layer 1 on
};

inline PackedWeights plan_weights(const Sizes& s, bool transposed, Carve& carve) {
    PackedWeights w{};
    // The left side of a product is a tile, whose columns are padded.
    const auto matrix = [&](int64_t in, int64_t padded_in, int64_t out, int64_t padded_out) {
        return carve.add((transposed ? packed_sizes(s, padded_out, in) : packed_sizes(s, padded_in, out)).words, 4);
    };
    const auto first = [&] { return matrix(s.dim, s.dim, s.width[0], s.padded[0]); };
    w.weight_q = first();
    if (!s.folded) w.weight_k = first(), w.weight_qk = first();
    for (int l = 1; l < s.layers; ++l) w.layers[l] = matrix(s.width[l - 1], s.padded[l - 1], s.width[l], s.padded[l]);
    return w;
}

// Byte offsets in the workspace of the arrays that forward and backward have in common.
struct Workspace {
    int64_t lengths;     // [Q + 1] in 64 bits: pairs of each candidate
    int64_t pair_first;  // [Q + 1]: pairs before each candidate
    int64_t slot_first;  // [Q + 1]: slots before each candidate, see schedule.cuh
    int64_t tile_sums;   // scratch of the sums
    int64_t query;       // [Q, D], only where the query comes from several tables
    int64_t constants;   // [Q, padded H1] of fp32: c_i
    int64_t params;      // 4 arrays [padded_sum] of fp32: bias, slope or alpha, mean, rstd
    int64_t output;      // [padded H of the last layer + 1] of fp32: weight and bias
    PackedWeights weights;
};

inline Workspace plan_workspace(const LocalActivation& call, const Sizes& s, Carve& carve) {
    Workspace w{};
    w.lengths = carve.add(call.queries + 1, 8);
    w.pair_first = carve.add(call.queries + 1, 8);
    w.tile_sums = carve.add(ceil_div(call.queries + 1, kWordsPerTile), 8);
    w.slot_first = s.folded ? carve.add(call.queries + 1, 8) : w.pair_first;
    w.query = carve.add(call.query.tables[0].ids.data ? call.queries * call.dim : 0, s.element_bytes);
    w.constants = carve.add(call.queries * s.padded[0], 4);
    w.params = carve.add(4 * s.padded_sum, 4);
    w.output = carve.add(s.padded[s.layers - 1] + 1, 4);
    w.weights = plan_weights(s, false, carve);
    return w;
}

// One launch over the tiles serves the candidates begin .. end.
struct Chunk {
    int64_t begin, end;
};

// The candidates of a chunk are summed in this many shares, apart from each other.
constexpr int64_t kFoldShares = 16;

// A folded call has A_i, A_i^T and dA_i for `chunk` candidates at a time, so that memory does not grow with Q * D * H1.
struct FoldPlan {
    int warps;                        // of a block that makes A_i, 16 candidates each
    int64_t chunk;                    // all candidates where the call is not folded
    int parts;                        // 1: A_i rounded; 2: behind it the rest, so that both add up to A_i
    int64_t words, transposed_words;  // of a part of A_i [D, H1] and, for backward, of A_i^T [H1, D], packed
    int64_t cells;                    // of dA_i [padded H1, D]
    int64_t outer_words;              // of Wo[h] [D, D], packed; outer features alone
    // byte offsets in the workspace
    int64_t matrices;                               // [chunk, parts, words]
    int64_t transposed;                             // [chunk, transposed_words]
    int64_t gradients;                              // [chunk, cells]
    int64_t weight_outer, weight_outer_transposed;  // [H1, outer_words]: B[j, d] = Wo[h, j, d], and its transpose
    int64_t shares, sums;  // [kFoldShares, 2, cells] and [2, cells]: sums of dA_i and of dA_i diag(q_i)
};

// `warps` is that of the blocks over the tiles: the queries of 16 candidates per warp need less shared memory than a
// tile.
inline FoldPlan plan_fold(const LocalActivation& call, const Sizes& s, int warps, bool backward, Carve& carve) {
    FoldPlan p{};
    p.warps = warps;
    p.chunk = std::max<int64_t>(call.queries, 1);
    if (!s.folded) return p;
    // The rounding of A_i is the same for all of a candidate's behaviours and would add up over them, where the
    // reference rounds every q_j k_d of outer features on its own. So outer features in half precision get two parts.
    // A_i^T has one part, since no sum is taken over its products with dz1. Concat and product have one too: there the
    // reference rounds q - k and q * k, terms as large as A_i.
    p.parts = call.features == Features::kOuter && s.element_bytes == 2 ? 2 : 1;
    p.words = packed_sizes(s, s.dim, s.width[0]).words;
    p.cells = int64_t(s.padded[0]) * s.dim;
    if (backward) p.transposed_words = packed_sizes(s, s.padded[0], s.dim).words;
    const int64_t bytes = 4 * (p.parts * p.words + p.transposed_words + (backward ? p.cells : 0));
    p.chunk = std::clamp<int64_t>(call.chunk_bytes / bytes, 1, p.chunk);
    p.matrices = carve.add(p.chunk * p.parts * p.words, 4);
    if (call.features == Features::kOuter) {
        p.outer_words = packed_sizes(s, s.dim, s.dim).words;
        p.weight_outer = carve.add(s.width[0] * p.outer_words, 4);
        if (backward) p.weight_outer_transposed = carve.add(s.width[0] * p.outer_words, 4);
    }
    if (!backward) return p;
    p.transposed = carve.add(p.chunk * p.transposed_words, 4);
    p.gradients = carve.add(p.chunk * p.cells, 4);
    p.shares = carve.add(kFoldShares * 2 * p.cells, 4);
    p.sums = carve.add(2 * p.cells, 4);
    return p;
}

}  // namespace din_kernels::cuda
