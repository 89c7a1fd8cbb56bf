// The parts that forward and backward share: rows of a history as a tile, the first layer, the MLP.
#pragma once

#include "common/activation.h"
#include "common/gemm.h"
#include "common/rows.h"
#include "local_activation/workspace.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// to[0 .. dim_p) = from[0 .. dim), zeros behind
template <typename T>
inline void copy_row(const T* from, int64_t dim, int64_t dim_p, T* to) {
    copy_values(from, dim, to);
    for (; dim < dim_p; ++dim) to[dim] = 0;
}

inline int64_t row_at(const LocalActivation& args, int64_t position) {
    return args.row_index ? args.row_index[position] : position;
}

template <typename T>
inline void copy_tile(const LocalActivation& args, int64_t position, int64_t rows, int64_t dim_p, T* tile) {
    const bool by_id = args.history.tables[0].ids.data;
    for (int64_t t = 0; t < rows; ++t) {
        if (by_id && t + kRowsAhead < rows)
            prefetch_row(args.history, args.dtype, row_at(args, position + t + kRowsAhead));
        fetch_row(args.history, args.dtype, row_at(args, position + t), dim_p, tile + t * dim_p);
    }
}

// Rows position .. position + rows as a matrix of stride dim_p, in place where they lie so already.
template <typename T>
inline const T* tile_of(const LocalActivation& args, int64_t position, int64_t rows, int64_t dim_p, T* tile) {
    const Table& table = args.history.tables[0];
    if (!args.row_index && !table.ids.data && args.dtype == kDTypeOf<T> && args.dim == dim_p)
        return static_cast<const T*>(table.values) + position * args.dim;
    copy_tile(args, position, rows, dim_p, tile);
    return tile;
}

// out[r, :] = shared[r, :] + product[r, :] * q, the fold of design equation A = (Wk - Wd) + Wp diag(q):
// transposed (rows are d, q broadcast) or not (rows are h, q a vector).
template <typename T>
inline void fold_transposed(const PackedMlp<T>& m, const T* q, T* out) {
    const int64_t width = m.width_p[0];
    for (int64_t d = 0; d < m.dim; ++d)
        for (int64_t j = d * width; j < (d + 1) * width; j += kLanes<T>)
            store(out + j, load(m.weight_k_t + j) + load(m.weight_qk_t + j) * q[d]);
}
template <typename T>
inline void fold(const PackedMlp<T>& m, const T* q, T* out) {
    for (int64_t h = 0; h < m.width[0]; ++h)
        for (int64_t d = 0; d < m.dim_p; d += kLanes<T>)
            store(out + h * m.dim_p + d,
                  load(m.weight_k + h * m.dim_p + d) + load(m.weight_qk + h * m.dim_p + d) * load(q + d));
}

// z[l + 1] = act(z[l]) W^T + b from z[0] to z[until].
template <typename T>
void hidden_forward(const LocalActivation& args, const PackedMlp<T>& m, int64_t rows, int until, Workspace<T>& w) {
    for (int l = 0; l < until; ++l) {
        activate(args.activation, m.params[l], rows, m.width_p[l], w.z[l], w.h[l]);
        gemm(rows, m.width[l + 1], m.width[l], w.h[l], m.width_p[l], int64_t(1), m.weight_t[l + 1], m.width_p[l + 1],
             m.bias[l + 1], int64_t(0), w.z[l + 1], m.width_p[l + 1]);
    }
}

// scores = scale * z of the output layer
template <typename T>
void mlp_forward(const Call<T>& call, int64_t rows, Workspace<T>& w) {
    const PackedMlp<T>& m = call.mlp;
    hidden_forward(call.args, m, rows, m.hidden, w);
    for (int64_t t = 0; t < rows; ++t) w.scores[t] = call.scale * w.z[m.hidden][t * m.width_p[m.hidden]];
}

// Gathers the queries of a chunk and c = (Wq + Wd) q + b1 of each.
template <typename T>
void query_side(const Call<T>& call, int64_t first, int64_t count, Workspace<T>& w) {
    const PackedMlp<T>& m = call.mlp;
    for (int64_t i = 0; i < count; ++i)
        fetch_row(call.args.query, call.args.dtype, call.plan->entries[first + i].query, m.dim_p,
                  w.queries + i * m.dim_p);
    gemm(count, m.width[0], m.dim, w.queries, m.dim_p, int64_t(1), m.weight_q_t, m.width_p[0], m.bias[0], int64_t(0),
         w.c, m.width_p[0]);
}

// Folds entry i of the chunk, the block's entry `at`, and calls body(t, tile, rows) for its tiles, z[0] filled.
template <typename T, typename Body>
void folded_tiles(const Call<T>& call, const Block<T>& block, int64_t at, int64_t i, Workspace<T>& w, Body body) {
    const LocalActivation& args = call.args;
    const PackedMlp<T>& m = call.mlp;
    const Entry& entry = call.plan->entries[at];
    const int64_t h1 = m.width_p[0];
    if (args.features == Features::kOuter)
        copy_values(call.outer.folded_t + (block.slot + at - block.first) * m.dim * h1, m.dim * h1, w.folded_t);
    else
        fold_transposed(m, w.queries + i * m.dim_p, w.folded_t);
    for (int64_t t = 0; t < entry.rows; t += kTile) {
        const int64_t rows = entry.rows - t < kTile ? entry.rows - t : kTile;
        const T* tile = tile_of(args, entry.position + t, rows, m.dim_p, w.tile);
        gemm(rows, m.width[0], m.dim, tile, m.dim_p, int64_t(1), w.folded_t, h1, w.c + i * h1, int64_t(0), w.z[0], h1);
        body(t, tile, rows);
    }
}

// One stretch of a flat tile: rows tile_row .. tile_row + rows belong to chunk entry `index`.
struct Stretch {
    int64_t index, tile_row, rows;
};

// Short histories of a chunk, packed into flat tiles: [k, q * k] against weights that all candidates share.
// Calls body(stretches, count, rows) once per tile, z[0] filled.
template <typename T, typename Body>
void flat_tiles(const Call<T>& call, int64_t first, int64_t count, Workspace<T>& w, Body body) {
    const PackedMlp<T>& m = call.mlp;
    const int64_t width = m.width_p[0];
    Stretch stretches[kChunk];
    int64_t used = 0, rows = 0;
    const auto flush = [&] {
        if (!rows) return;
        gemm(rows, m.width[0], m.dim, w.tile, m.dim_p, int64_t(1), m.weight_k_t, width, w.z[0], width, w.z[0], width);
        gemm(rows, m.width[0], m.dim, w.products, m.dim_p, int64_t(1), m.weight_qk_t, width, w.z[0], width, w.z[0],
             width);
        body(stretches, used, rows);
        used = rows = 0;
    };
    for (int64_t i = 0; i < count; ++i) {
        const Entry& entry = call.plan->entries[first + i];
        if (entry.rows >= w.fold_from) continue;
        if (rows + entry.rows > kTile) flush();
        copy_tile(call.args, entry.position, entry.rows, m.dim_p, w.tile + rows * m.dim_p);
        const T* q = w.queries + i * m.dim_p;
        for (int64_t t = rows; t < rows + entry.rows; ++t) {
            for (int64_t d = 0; d < m.dim_p; d += kLanes<T>)
                store(w.products + t * m.dim_p + d, load(w.tile + t * m.dim_p + d) * load(q + d));
            copy_values(w.c + i * width, width, w.z[0] + t * width);
        }
        stretches[used++] = {i, rows, entry.rows};
        rows += entry.rows;
    }
    flush();
}

// Calls chunk(first, count) for the block's entries, kChunk at a time, the query side done.
template <typename T, typename Chunk>
void for_chunks(const Call<T>& call, const Block<T>& block, Workspace<T>& w, Chunk chunk) {
    for (int64_t first = block.first; first < block.last; first += kChunk) {
        const int64_t count = block.last - first < kChunk ? block.last - first : kChunk;
        query_side(call, first, count, w);
        chunk(first, count);
    }
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
