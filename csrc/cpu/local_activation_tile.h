// What forward and backward share: the thread's buffers, rows of a history as a tile, the first layer, the MLP.
#pragma once

#include "activation.h"
#include "gemm.h"
#include "local_activation_call.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

constexpr int64_t kTile = 60;   // rows at a time; a multiple of the 5 and 6 rows of the wide micro-kernels
constexpr int64_t kChunk = 32;  // candidates whose query side is one product
// Below this many behaviours the candidate's own matrix A costs more than it saves: see docs/performance.md.
constexpr int64_t kFoldFrom = 10;

template <typename T>
struct Workspace {
    T *queries, *c, *folded_t, *tile, *product;  // [kChunk, Dp], [kChunk, H1p], [D, H1p], [kTile, Dp], [kTile, Dp]
    T *z[kMaxHidden + 1], *h[kMaxHidden + 1];    // [kTile, Hp]
    T *scores, *pooled;                          // [kTile], [Dp]
    // backward
    T *dc, *dq, *folded, *da, *drows, *dproduct, *gradient, *dscores;
    T* dz[kMaxHidden + 1];

    // Counts the elements when base is null.
    int64_t lay_out(const PackedMlp<T>& m, T* base, bool backward) {
        int64_t used = 0;
        const auto take = [&](T*& pointer, int64_t count) {
            pointer = base + used;
            used += (count + 15) / 16 * 16;
        };
        const int64_t h1 = m.width_p[0];
        take(queries, kChunk * m.dim_p), take(c, kChunk * h1), take(folded_t, m.dim * h1);
        take(tile, kTile * m.dim_p), take(product, kTile * m.dim_p), take(scores, kTile + 16), take(pooled, m.dim_p);
        for (int l = 0; l <= m.hidden; ++l) {
            take(z[l], kTile * m.width_p[l]);
            h[l] = z[l];
            if (backward && l < m.hidden) take(h[l], kTile * m.width_p[l]);
        }
        if (backward) {
            take(dc, kChunk * h1), take(dq, kChunk * m.dim_p), take(folded, m.width[0] * m.dim_p);
            take(da, m.width[0] * m.dim_p), take(drows, kTile * m.dim_p), take(dproduct, kTile * m.dim_p);
            take(gradient, m.dim_p), take(dscores, kTile + 16);
            for (int l = 0; l <= m.hidden; ++l) take(dz[l], kTile * m.width_p[l]);
        }
        return used;
    }
};

template <typename T>
int64_t workspace_size(const PackedMlp<T>& mlp, bool backward) {
    Workspace<T> w;
    return w.lay_out(mlp, nullptr, backward);
}

// dst[0 .. dim_p) = src[0 .. dim), zeros behind
template <typename T>
inline void copy_row(const T* src, int64_t dim, int64_t dim_p, T* dst) {
    int64_t d = 0;
    for (; d + kLanes<T> <= dim; d += kLanes<T>) store(dst + d, load(src + d));
    for (; d < dim; ++d) dst[d] = src[d];
    for (; d < dim_p; ++d) dst[d] = 0;
}

// dst[0 .. dim) = or += src
template <typename T>
inline void write_row(const T* src, int64_t dim, bool add, T* dst) {
    int64_t d = 0;
    for (; d + kLanes<T> <= dim; d += kLanes<T>) store(dst + d, add ? load(dst + d) + load(src + d) : load(src + d));
    for (; d < dim; ++d) dst[d] = add ? dst[d] + src[d] : src[d];
}

template <typename T>
inline int64_t row_at(const LocalActivationArgs<T>& args, int64_t position) {
    return args.row_index ? args.row_index[position] : position;
}

template <typename T>
inline void copy_tile(const LocalActivationArgs<T>& args, int64_t position, int64_t rows, int64_t dim_p, T* tile) {
    for (int64_t t = 0; t < rows; ++t)
        copy_row(args.rows + row_at(args, position + t) * args.dim, args.dim, dim_p, tile + t * dim_p);
}

// Rows position .. position + rows as a matrix of stride dim_p, in place where they lie so already.
template <typename T>
inline const T* tile_of(const LocalActivationArgs<T>& args, int64_t position, int64_t rows, int64_t dim_p, T* tile) {
    if (!args.row_index && args.dim == dim_p) return args.rows + position * args.dim;
    copy_tile(args, position, rows, dim_p, tile);
    return tile;
}

// out[r, :] = shared[r, :] + product[r, :] * q, the fold of design equation A = (Wk - Wd) + Wp diag(q):
// transposed (rows are d, q broadcast) or not (rows are h, q a vector).
template <typename T>
inline void fold_transposed(const PackedMlp<T>& m, const T* q, T* out) {
    const int64_t width = m.width_p[0];
    const T* product = m.first_t + m.dim * width;
    for (int64_t d = 0; d < m.dim; ++d)
        for (int64_t j = 0; j < width; j += kLanes<T>)
            store(out + d * width + j, load(m.first_t + d * width + j) + load(product + d * width + j) * q[d]);
}
template <typename T>
inline void fold(const PackedMlp<T>& m, const T* q, T* out) {
    for (int64_t h = 0; h < m.width[0]; ++h)
        for (int64_t d = 0; d < m.dim_p; d += kLanes<T>)
            store(out + h * m.dim_p + d,
                  load(m.history + h * m.dim_p + d) + load(m.product + h * m.dim_p + d) * load(q + d));
}

// z[l] from z[0] on: h = act(z), next z = h W^T + b. scores = scale * z of the output layer.
template <typename T>
void mlp_forward(const LocalActivationArgs<T>& args, const PackedMlp<T>& m, int64_t rows, Workspace<T>& w) {
    for (int l = 0; l < m.hidden; ++l) {
        activate(args.activation, m.params[l], rows, m.width_p[l], w.z[l], w.h[l]);
        gemm(rows, m.width_p[l + 1], m.width[l], w.h[l], m.width_p[l], int64_t(1), m.weight_t[l + 1], m.width_p[l + 1],
             m.bias[l + 1], int64_t(0), w.z[l + 1], m.width_p[l + 1]);
    }
    for (int64_t t = 0; t < rows; ++t) w.scores[t] = args.scale * w.z[m.hidden][t * m.width_p[m.hidden]];
}

// Gathers the queries of a chunk and c = (Wq + Wd) q + b1 of each.
template <typename T>
void query_side(const Call<T>& call, int64_t first, int64_t count, Workspace<T>& w) {
    const PackedMlp<T>& m = call.mlp;
    for (int64_t i = 0; i < count; ++i)
        copy_row(call.args->query + call.plan->entries[first + i].query * m.dim, m.dim, m.dim_p,
                 w.queries + i * m.dim_p);
    gemm(count, m.width_p[0], m.dim, w.queries, m.dim_p, int64_t(1), m.query_t, m.width_p[0], m.bias[0], int64_t(0),
         w.c, m.width_p[0]);
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
    Stretch stretches[kChunk];
    int64_t used = 0, rows = 0;
    const auto flush = [&] {
        if (!rows) return;
        const int64_t width = m.width_p[0];
        gemm(rows, width, m.dim, w.tile, m.dim_p, int64_t(1), m.first_t, width, w.z[0], width, w.z[0], width);
        gemm(rows, width, m.dim, w.product, m.dim_p, int64_t(1), m.first_t + m.dim * width, width, w.z[0], width,
             w.z[0], width);
        body(stretches, used, rows);
        used = rows = 0;
    };
    for (int64_t i = 0; i < count; ++i) {
        const Entry& entry = call.plan->entries[first + i];
        if (entry.rows >= kFoldFrom) continue;
        if (rows + entry.rows > kTile) flush();
        copy_tile(*call.args, entry.position, entry.rows, m.dim_p, w.tile + rows * m.dim_p);
        const T* q = w.queries + i * m.dim_p;
        for (int64_t t = rows; t < rows + entry.rows; ++t) {
            for (int64_t d = 0; d < m.dim_p; d += kLanes<T>)
                store(w.product + t * m.dim_p + d, load(w.tile + t * m.dim_p + d) * load(q + d));
            copy_row(w.c + i * m.width_p[0], m.width_p[0], m.width_p[0], w.z[0] + t * m.width_p[0]);
        }
        stretches[used++] = {i, rows, entry.rows};
        rows += entry.rows;
    }
    flush();
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
