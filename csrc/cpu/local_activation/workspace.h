// The buffers of a block of entries.
#pragma once

#include "local_activation/call.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

constexpr int64_t kTile = 60;   // rows at a time; a multiple of the 5 and 6 rows of the wide micro-kernels
constexpr int64_t kChunk = 32;  // candidates whose query side is one product
// Below so many behaviours the candidate's own matrix A costs more than it saves (benchmarks/history_length.py):
// backward makes it twice, and dA beside it.
constexpr int64_t kFoldForward = 7, kFoldBackward = 10;

// The arrays of one block, side by side in its memory, each on a cache line. A block takes its entries kChunk at a
// time; entry i of a chunk has row i of the chunk's arrays, and its behaviours pass through those of a tile:
//
//     chunk                     folded: a long history,         flat: short histories of the chunk,
//                               a tile of one candidate         a tile of several candidates
//     queries  | q_0     |      tile | k_0           |          tile | k of c0 | products | q_0 * k |
//              | q_1     |           | ...           |               | k of c0 |          | q_0 * k |
//              | ..      |           | k_59          |               | k of c3 |          | q_3 * k |
//     c        | c_0     |      z1 = tile A^T + c_i               z1 = tile Wk'^T + products Wp^T + c
template <typename T>
struct Workspace {
    // Of the chunk.
    T* queries;  // [kChunk, Dp]
    T* c;        // [kChunk, H1p]: (Wq + Wd) q + b1
    // Of the tile.
    T* tile;               // [kTile, Dp]: rows of the history, where they cannot be read in place
    T* products;           // [kTile, Dp]: q * k, flat tiles only
    T* z[kMaxHidden + 1];  // [kTile, Hp]: before the activation of each layer
    T* h[kMaxHidden + 1];  // [kTile, Hp]: behind it; in forward the same memory
    T* scores;             // [kTile]
    // Of the candidate.
    T* folded_t;  // [D, H1p]: A^T
    T* pooled;    // [Dp]
    // Backward alone.
    T* dc;                  // [kChunk, H1p]: gradients of c
    T* dq;                  // [kChunk, Dp]
    T* dz[kMaxHidden + 1];  // [kTile, Hp]
    T* dscores;             // [kTile]
    T* drows;               // [kTile, Dp]: gradients of the history's rows
    T* dproduct;            // [kTile, Dp]: gradients of q * k, flat tiles only
    T* gradient;            // [Dp]: dL/dpooled of the candidate
    T* folded;              // [H1, Dp]: A
    T* da;                  // [H1, Dp]: gradient of A
    T* shared_rows;         // [longest_shared, Dp]: gradients of rows that several entries of a folded run add to
    T* shared_flat;         // [kFoldBackward, Dp]: the same of a flat one

    int64_t fold_from;  // entries of at least so many behaviours have a matrix A of their own

    // Counts the elements when base is null.
    int64_t lay_out(const PackedMlp<T>& m, T* base, bool backward, int64_t longest_shared) {
        fold_from = m.weight_outer_t ? 0 : backward ? kFoldBackward : kFoldForward;  // with outer features all have one
        int64_t used = 0;
        const auto take = [&](T*& pointer, int64_t count) {
            pointer = base ? base + used : nullptr;
            used += (count + 15) / 16 * 16;
        };
        const int64_t h1 = m.width_p[0];
        take(queries, kChunk * m.dim_p), take(c, kChunk * h1), take(folded_t, m.dim * h1);
        take(tile, kTile * m.dim_p), take(products, kTile * m.dim_p), take(scores, kTile + 16), take(pooled, m.dim_p);
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
            take(shared_rows, longest_shared * m.dim_p), take(shared_flat, kFoldBackward * m.dim_p);
        }
        if (base) clear_padding(m, backward);
        return used;
    }

 private:
    // A product ends with half a vector of columns where that is enough, but rows are read by whole vectors. What lies
    // between is written here, once per block, as is what lies behind the scores.
    void clear_padding(const PackedMlp<T>& m, bool backward) {
        const auto clear = [](T* matrix, int64_t rows, int64_t columns, int64_t stride) {
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = columns; j < stride; ++j) matrix[i * stride + j] = 0;
        };
        clear(scores, 1, 0, kTile + 16);
        clear(c, kChunk, m.width[0], m.width_p[0]);
        for (int l = 0; l < m.hidden; ++l) clear(z[l], kTile, m.width[l], m.width_p[l]);
        if (!backward) return;
        for (int l = 0; l < m.hidden; ++l) clear(dz[l], kTile, m.width[l], m.width_p[l]);
        clear(da, m.width[0], m.dim, m.dim_p);
        clear(dproduct, kTile, m.dim, m.dim_p);
    }
};

template <typename T>
int64_t workspace_size(const PackedMlp<T>& mlp, bool backward, int64_t longest_shared) {
    Workspace<T> w;
    return w.lay_out(mlp, nullptr, backward, longest_shared);
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
