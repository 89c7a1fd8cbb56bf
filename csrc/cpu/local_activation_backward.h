// Backward of one block of entries; the forward is recomputed tile by tile. With g = dL/dpooled:
//   dw = <g, k> + gw;  ds = scale dw (none) or scale w (dw - sum_r w_r dw_r) (softmax)
//   dz_l = (dz_(l+1) W_(l+1)) act'(z_l);  dk = w g + A^T dz1;  dA = sum dz1 k^T;  dc = sum dz1
#pragma once

#include "local_activation_tile.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// sum_r w_r dw_r = <g, pooled> + sum_r w_r gw_r over the candidate's whole history, softmax only
template <typename T>
T softmax_mean(const LocalActivationArgs<T>& args, const Entry& entry) {
    T mean = 0;
    const T *g = args.grad_pooled + entry.query * args.dim, *pooled = args.pooled + entry.query * args.dim;
    for (int64_t d = 0; d < args.dim; ++d) mean += g[d] * pooled[d];
    if (args.grad_pair_weights)
        for (int64_t r = 0; r < entry.history_rows; ++r)
            mean += args.pair_weights[entry.history_pair + r] * args.grad_pair_weights[entry.history_pair + r];
    return mean;
}

// For rows of one entry with scores s: weights into s (in place), ds into dscores, drows = w g.
template <typename T>
void score_gradients(const LocalActivationArgs<T>& args, const PackedMlp<T>& m, const Entry& entry, int64_t offset,
                     int64_t rows, const T* tile, const T* g, T mean, T* scores, T* dscores, T* drows) {
    const bool softmax = args.normalize == Normalize::kSoftmax;
    for (int64_t t = 0; t < rows; ++t) {
        Vec<T> dot = {};
        for (int64_t d = 0; d < m.dim_p; d += kLanes<T>) dot += load(g + d) * load(tile + t * m.dim_p + d);
        T dw = sum<T>(dot);
        if (args.grad_pair_weights) dw += args.grad_pair_weights[entry.pair + offset + t];
        const T weight = softmax ? exp(splat(scores[t] - args.logsumexp[entry.query]))[0] : scores[t];
        dscores[t] = args.scale * (softmax ? weight * (dw - mean) : dw);
        for (int64_t d = 0; d < m.dim_p; d += kLanes<T>) store(drows + t * m.dim_p + d, load(g + d) * weight);
    }
}

// out[width] += column sums of x[rows, width]
template <typename T>
inline void add_columns(const T* x, int64_t rows, int64_t width, T* out) {
    for (int64_t j = 0; j < width; j += kLanes<T>) {
        Vec<T> total = load(out + j);
        for (int64_t i = 0; i < rows; ++i) total += load(x + i * width + j);
        store(out + j, total);
    }
}

// From dscores down to dz[0]; weight, bias and activation gradients of layers 1 .. hidden on the way.
template <typename T>
void mlp_backward(const LocalActivationArgs<T>& args, const PackedMlp<T>& m, int64_t rows, Workspace<T>& w,
                  const PartialGrads<T>& grads) {
    const int64_t out = m.width_p[m.hidden];
    for (int64_t t = 0; t < rows; ++t) {
        for (int64_t j = 1; j < out; ++j) w.dz[m.hidden][t * out + j] = 0;
        w.dz[m.hidden][t * out] = w.dscores[t];
    }
    for (int l = m.hidden; l > 0; --l) {
        const int64_t above = m.width_p[l], below = m.width_p[l - 1];
        add_columns(w.dz[l], rows, above, grads.bias[l]);
        gemm(m.width[l], below, rows, w.dz[l], int64_t(1), above, w.h[l - 1], below, grads.weight[l], below,
             grads.weight[l], below);
        gemm(rows, below, m.width[l], w.dz[l], above, int64_t(1), m.weight[l], below, m.zeros, int64_t(0), w.dz[l - 1],
             below);
        activate_backward(args.activation, m.params[l - 1], rows, below, w.z[l - 1], w.h[l - 1], w.dz[l - 1],
                          grads.params[l - 1]);
    }
}

template <typename T>
void write_history_gradients(const Call<T>& call, const Entry& entry, int64_t offset, int64_t rows, const T* drows) {
    const LocalActivationArgs<T>& args = *call.args;
    for (int64_t t = 0; t < rows; ++t) {
        T* to = entry.grad_row >= 0 ? call.partial_rows + (entry.grad_row + offset + t) * args.dim
                                    : args.grad_rows + row_at(args, entry.position + offset + t) * args.dim;
        write_row(drows + t * call.mlp.dim_p, args.dim, entry.accumulate, to);
    }
}

// Long history: A folded once; dA of the run, then its shares for Wk', Wp and q.
template <typename T>
void backward_folded(const Call<T>& call, const Entry& entry, int64_t i, Workspace<T>& w,
                     const PartialGrads<T>& grads) {
    const LocalActivationArgs<T>& args = *call.args;
    const PackedMlp<T>& m = call.mlp;
    const int64_t h1 = m.width_p[0];
    const T* q = w.queries + i * m.dim_p;
    fold_transposed(m, q, w.folded_t);
    if (args.grad_rows) fold(m, q, w.folded);
    copy_row(args.grad_pooled + entry.query * m.dim, m.dim, m.dim_p, w.gradient);
    const T mean = args.normalize == Normalize::kSoftmax ? softmax_mean(args, entry) : T(0);
    for (int64_t t = 0; t < entry.rows; t += kTile) {
        const int64_t rows = entry.rows - t < kTile ? entry.rows - t : kTile;
        const T* tile = tile_of(args, entry.position + t, rows, m.dim_p, w.tile);
        gemm(rows, h1, m.dim, tile, m.dim_p, int64_t(1), w.folded_t, h1, w.c + i * h1, int64_t(0), w.z[0], h1);
        mlp_forward(args, m, rows, w);
        score_gradients(args, m, entry, t, rows, tile, w.gradient, mean, w.scores, w.dscores, w.drows);
        mlp_backward(args, m, rows, w, grads);
        add_columns(w.dz[0], rows, h1, w.dc + i * h1);
        gemm(m.width[0], m.dim_p, rows, w.dz[0], int64_t(1), h1, tile, m.dim_p, t ? w.da : m.zeros,
             t ? m.dim_p : int64_t(0), w.da, m.dim_p);
        if (args.grad_rows) {
            gemm(rows, m.dim_p, m.width[0], w.dz[0], h1, int64_t(1), w.folded, m.dim_p, w.drows, m.dim_p, w.drows,
                 m.dim_p);
            write_history_gradients(call, entry, t, rows, w.drows);
        }
    }
    // dWk' += dA, dWp += dA diag(q), dq += sum_h Wp[h] * dA[h]
    T* dq = w.dq + i * m.dim_p;
    for (int64_t h = 0; h < m.width[0]; ++h)
        for (int64_t d = h * m.dim_p, e = 0; e < m.dim_p; d += kLanes<T>, e += kLanes<T>) {
            const Vec<T> da = load(w.da + d);
            store(grads.history + d, load(grads.history + d) + da);
            store(grads.product + d, load(grads.product + d) + da * load(q + e));
            store(dq + e, load(dq + e) + da * load(m.product + d));
        }
}

// Short histories: weights shared by all candidates, dX = dz1 [Wk', Wp].
template <typename T>
void backward_flat(const Call<T>& call, int64_t chunk, const Stretch* stretches, int64_t used, int64_t rows,
                   Workspace<T>& w, const PartialGrads<T>& grads) {
    const LocalActivationArgs<T>& args = *call.args;
    const PackedMlp<T>& m = call.mlp;
    const int64_t h1 = m.width_p[0];
    mlp_forward(args, m, rows, w);
    for (int64_t s = 0; s < used; ++s) {
        const Entry& entry = call.plan->entries[chunk + stretches[s].index];
        const int64_t row = stretches[s].tile_row;
        copy_row(args.grad_pooled + entry.query * m.dim, m.dim, m.dim_p, w.gradient);
        const T mean = args.normalize == Normalize::kSoftmax ? softmax_mean(args, entry) : T(0);
        score_gradients(args, m, entry, 0, entry.rows, w.tile + row * m.dim_p, w.gradient, mean, w.scores + row,
                        w.dscores + row, w.drows + row * m.dim_p);
    }
    mlp_backward(args, m, rows, w, grads);
    gemm(m.width[0], m.dim_p, rows, w.dz[0], int64_t(1), h1, w.tile, m.dim_p, grads.history, m.dim_p, grads.history,
         m.dim_p);
    gemm(m.width[0], m.dim_p, rows, w.dz[0], int64_t(1), h1, w.product, m.dim_p, grads.product, m.dim_p, grads.product,
         m.dim_p);
    gemm(rows, m.dim_p, m.width[0], w.dz[0], h1, int64_t(1), m.product, m.dim_p, m.zeros, int64_t(0), w.dproduct,
         m.dim_p);
    if (args.grad_rows)
        gemm(rows, m.dim_p, m.width[0], w.dz[0], h1, int64_t(1), m.history, m.dim_p, w.drows, m.dim_p, w.drows,
             m.dim_p);
    for (int64_t s = 0; s < used; ++s) {
        const int64_t i = stretches[s].index, row = stretches[s].tile_row;
        const Entry& entry = call.plan->entries[chunk + i];
        add_columns(w.dz[0] + row * h1, entry.rows, h1, w.dc + i * h1);
        T *q = w.queries + i * m.dim_p, *dq = w.dq + i * m.dim_p;
        // dk += q * dproduct, dq += sum_t k_t * dproduct_t
        for (int64_t t = row; t < row + entry.rows; ++t)
            for (int64_t d = t * m.dim_p, e = 0; e < m.dim_p; d += kLanes<T>, e += kLanes<T>) {
                const Vec<T> dproduct = load(w.dproduct + d);
                store(w.drows + d, load(w.drows + d) + load(q + e) * dproduct);
                store(dq + e, load(dq + e) + load(w.tile + d) * dproduct);
            }
        if (args.grad_rows) write_history_gradients(call, entry, 0, entry.rows, w.drows + row * m.dim_p);
    }
}

template <typename T>
void backward_block(const Call<T>& call, int64_t first, int64_t last, T* memory, const PartialGrads<T>& grads) {
    const LocalActivationArgs<T>& args = *call.args;
    const PackedMlp<T>& m = call.mlp;
    const int64_t h1 = m.width_p[0];
    Workspace<T> w;
    w.lay_out(m, memory, true);
    for (int64_t chunk = first; chunk < last; chunk += kChunk) {
        const int64_t count = last - chunk < kChunk ? last - chunk : kChunk;
        query_side(call, chunk, count, w);
        for (int64_t x = 0; x < count * h1; ++x) w.dc[x] = 0;
        for (int64_t x = 0; x < count * m.dim_p; ++x) w.dq[x] = 0;
        for (int64_t i = 0; i < count; ++i) {
            const Entry& entry = call.plan->entries[chunk + i];
            if (entry.rows >= kFoldFrom) backward_folded(call, entry, i, w, grads);
        }
        flat_tiles(call, chunk, count, w, [&](const Stretch* stretches, int64_t used, int64_t rows) {
            backward_flat(call, chunk, stretches, used, rows, w, grads);
        });
        // db1 += dc, dWq += dc q^T, dq += (Wq + Wd)^T dc
        add_columns(w.dc, count, h1, grads.bias[0]);
        gemm(m.width[0], m.dim_p, count, w.dc, int64_t(1), h1, w.queries, m.dim_p, grads.query, m.dim_p, grads.query,
             m.dim_p);
        if (!args.grad_query) continue;
        gemm(count, m.dim_p, m.width[0], w.dc, h1, int64_t(1), m.query, m.dim_p, w.dq, m.dim_p, w.dq, m.dim_p);
        for (int64_t i = 0; i < count; ++i) {
            const Entry& entry = call.plan->entries[chunk + i];
            T* to =
                entry.partial >= 0 ? call.partial_sums + entry.partial * m.dim : args.grad_query + entry.query * m.dim;
            write_row(w.dq + i * m.dim_p, m.dim, false, to);
        }
    }
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
