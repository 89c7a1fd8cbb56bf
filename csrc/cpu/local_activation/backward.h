// Backward of one block of entries; the forward is recomputed tile by tile. With g = dL/dpooled:
//   dw = <g, k> + gw;  ds = scale dw (none) or scale w (dw - sum_r w_r dw_r) (softmax)
//   dz_l = (dz_(l+1) W_(l+1)) act'(z_l);  dk = w g + A^T dz1;  dA = sum dz1 k^T;  dc = sum dz1
// Dice in training adds to dz_l what flows through the batch's mean and variance, known after a pass of its own per
// layer.
#pragma once

#include "local_activation/forward.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// sum_r w_r dw_r = <g, pooled> + sum_r w_r gw_r over the candidate's whole history, softmax only. In double: every ds
// is the difference to it, and their sum would be 0.
template <typename T>
T softmax_mean(const LocalActivationArgs<T>& args, const Entry& entry) {
    double mean = 0;
    const T *g = args.grad_pooled + entry.query * args.dim, *pooled = args.pooled + entry.query * args.dim;
    for (int64_t d = 0; d < args.dim; ++d) mean += double(g[d]) * pooled[d];
    if (args.grad_pair_weights)
        for (int64_t r = 0; r < entry.history_rows; ++r)
            mean += double(args.pair_weights[entry.history_pair + r]) * args.grad_pair_weights[entry.history_pair + r];
    return T(mean);
}

// For rows of one entry with scores s: weights into s (in place), ds into dscores, drows = w g. `mean` is softmax_mean,
// and `residual` what the rows before have of sum_r w_r (dw_r - mean), which would be 0 over the whole history if
// pooled were exact: with `last` these rows take it, since gradients of the last layer are sums over terms that cancel.
template <typename T>
void score_gradients(const LocalActivationArgs<T>& args, const PackedMlp<T>& m, const Entry& entry, int64_t offset,
                     int64_t rows, const T* tile, const T* g, T mean, bool last, double& residual, T* scores,
                     T* dscores, T* drows) {
    const bool softmax = args.normalize == Normalize::kSoftmax;
    double total = 0;
    for (int64_t t = 0; t < rows; ++t) {
        Vec<T> dot = {};
        for (int64_t d = 0; d < m.dim_p; d += kLanes<T>) dot += load(g + d) * load(tile + t * m.dim_p + d);
        T dw = sum<T>(dot);
        if (args.grad_pair_weights) dw += args.grad_pair_weights[entry.pair + offset + t];
        T weight = softmax ? exp(splat(T(scores[t] - args.logsumexp[entry.query])))[0] : scores[t];
        T ds = softmax ? weight * (dw - mean) : dw;
        if (!counts(args, entry.position + offset + t)) weight = ds = 0;
        total += weight;
        residual += ds;
        scores[t] = weight;
        dscores[t] = args.scale * ds;
        for (int64_t d = 0; d < m.dim_p; d += kLanes<T>) store(drows + t * m.dim_p + d, load(g + d) * weight);
    }
    if (!softmax || !last || total == 0) return;
    const T share = T(double(args.scale) * residual / total);
    for (int64_t t = 0; t < rows; ++t) dscores[t] -= scores[t] * share;
}

// out[width] += column sums of x[rows, width]. The tile is added up first: a running sum over all pairs would lose
// more.
template <typename T>
inline void add_columns(const T* x, int64_t rows, int64_t width, T* out) {
    for (int64_t j = 0; j < width; j += kLanes<T>) {
        Vec<T> total = {};
        for (int64_t i = 0; i < rows; ++i) total += load(x + i * width + j);
        store(out + j, load(out + j) + total);
    }
}

// dz += through_mean + through_var (z - mean)
template <typename T>
inline void add_through_statistics(const PackedMlp<T>& m, int l, int64_t rows, const T* z, T* dz) {
    const int64_t width = m.width_p[l];
    for (int64_t j = 0; j < width; j += kLanes<T>) {
        const Vec<T> mean = load(m.params[l][1] + j);
        const Vec<T> through_mean = load(m.through_mean[l] + j), through_var = load(m.through_var[l] + j);
        for (int64_t i = j; i < rows * width; i += width)
            store(dz + i, load(dz + i) + through_mean + through_var * (load(z + i) - mean));
    }
}

// From dscores down to dz[0]; weight, bias and activation gradients of layers 1 .. hidden on the way. With `only` below
// hidden, down to the activation parameters of that layer, the gradients of others left incomplete.
template <typename T>
void mlp_backward(const LocalActivationArgs<T>& args, const PackedMlp<T>& m, int64_t rows, int only, Workspace<T>& w,
                  const PartialGrads<T>& grads) {
    const int64_t out = m.width_p[m.hidden];
    const bool everything = only == m.hidden;
    for (int64_t t = 0; t < rows; ++t) {
        for (int64_t j = 1; j < out; ++j) w.dz[m.hidden][t * out + j] = 0;
        w.dz[m.hidden][t * out] = w.dscores[t];
    }
    for (int l = m.hidden; l > (everything ? 0 : only); --l) {
        const int64_t above = m.width_p[l], below = m.width_p[l - 1];
        if (everything) {
            add_columns(w.dz[l], rows, above, grads.bias[l]);
            gemm(m.width[l], m.width[l - 1], rows, w.dz[l], int64_t(1), above, w.h[l - 1], below, grads.weight[l],
                 below, grads.weight[l], below);
        }
        gemm(rows, m.width[l - 1], m.width[l], w.dz[l], above, int64_t(1), m.weight[l], below, m.zeros, int64_t(0),
             w.dz[l - 1], below);
        activate_backward(args.activation, m.params[l - 1], rows, below, w.z[l - 1], w.h[l - 1], w.dz[l - 1],
                          grads.params[l - 1]);
        if (args.dice_training) add_through_statistics(m, l - 1, rows, w.z[l - 1], w.dz[l - 1]);
    }
}

// Gradients of rows offset .. offset + rows of the entry's run; `shared` holds those of the whole run while several
// entries add to it.
template <typename T>
void write_history_gradients(const Call<T>& call, const Entry& entry, int64_t offset, int64_t rows, const T* drows,
                             T* shared) {
    const LocalActivationArgs<T>& args = *call.args;
    const int64_t dim = args.dim, dim_p = call.mlp.dim_p;
    for (int64_t t = 0; t < rows; ++t) {
        const T* row = drows + t * dim_p;
        if (!entry.first || !entry.last) {
            T* sum = shared + (offset + t) * dim_p;
            for (int64_t d = 0; d < dim_p; d += kLanes<T>)
                store(sum + d, entry.first ? load(row + d) : load(sum + d) + load(row + d));
            row = sum;
        }
        if (!entry.last) continue;
        if (entry.grad_row >= 0)
            copy_values(row, dim, call.partial_rows + (entry.grad_row + offset + t) * dim);
        else
            write_row_grad(args.rows, args.grad_rows, args.storage, row_at(args, entry.position + offset + t), row);
    }
}

// out [H, Dp] = in [D, Hp] transposed
template <typename T>
inline void transpose(const PackedMlp<T>& m, const T* in, T* out) {
    for (int64_t h = 0; h < m.width[0]; ++h) {
        for (int64_t d = 0; d < m.dim; ++d) out[h * m.dim_p + d] = in[d * m.width_p[0] + h];
        for (int64_t d = m.dim; d < m.dim_p; ++d) out[h * m.dim_p + d] = 0;
    }
}

// Long history: A folded once; dA of the run, then its shares for Wk', Wp and q. With outer features dA^T is left in
// the round, where the shares of all entries are taken together.
template <typename T>
void backward_folded(const Call<T>& call, const Block<T>& block, int64_t at, int64_t i, int only, Workspace<T>& w,
                     const PartialGrads<T>& grads) {
    const LocalActivationArgs<T>& args = *call.args;
    const PackedMlp<T>& m = call.mlp;
    const Entry& entry = call.plan->entries[at];
    const int64_t h1 = m.width_p[0];
    const bool outer = args.features == Features::kOuter, everything = only == m.hidden;
    const T* q = w.queries + i * m.dim_p;
    T* outer_da = call.outer.folded_t + (block.slot + at - block.first) * m.dim * h1;
    copy_row(args.grad_pooled + entry.query * m.dim, m.dim, m.dim_p, w.gradient);
    const T mean = args.normalize == Normalize::kSoftmax ? softmax_mean(args, entry) : T(0);
    const bool whole = entry.partial < 0;
    double residual = 0;
    folded_tiles(call, block, at, i, w, [&](int64_t t, const T* tile, int64_t rows) {
        if (t == 0 && everything && args.grad_rows.needed) {
            if (outer)
                transpose(m, w.folded_t, w.folded);
            else
                fold(m, q, w.folded);
        }
        mlp_forward(args, m, rows, w);
        score_gradients(args, m, entry, t, rows, tile, w.gradient, mean, whole && t + rows == entry.rows, residual,
                        w.scores, w.dscores, w.drows);
        mlp_backward(args, m, rows, only, w, grads);
        if (!everything) return;
        add_columns(w.dz[0], rows, h1, w.dc + i * h1);
        if (outer)
            gemm(m.dim, m.width[0], rows, tile, int64_t(1), m.dim_p, w.dz[0], h1, t ? outer_da : m.zeros,
                 t ? h1 : int64_t(0), outer_da, h1);
        else
            gemm(m.width[0], m.dim, rows, w.dz[0], int64_t(1), h1, tile, m.dim_p, t ? w.da : m.zeros,
                 t ? m.dim_p : int64_t(0), w.da, m.dim_p);
        if (args.grad_rows.needed) {
            gemm(rows, m.dim, m.width[0], w.dz[0], h1, int64_t(1), w.folded, m.dim_p, w.drows, m.dim_p, w.drows,
                 m.dim_p);
            write_history_gradients(call, entry, t, rows, w.drows, w.shared_rows);
        }
    });
    if (outer || !everything) return;
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
void backward_flat(const Call<T>& call, int64_t chunk, const Stretch* stretches, int64_t used, int64_t rows, int only,
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
        double residual = 0;
        score_gradients(args, m, entry, 0, entry.rows, w.tile + row * m.dim_p, w.gradient, mean, true, residual,
                        w.scores + row, w.dscores + row, w.drows + row * m.dim_p);
    }
    mlp_backward(args, m, rows, only, w, grads);
    if (only < m.hidden) return;
    gemm(m.width[0], m.dim, rows, w.dz[0], int64_t(1), h1, w.tile, m.dim_p, grads.history, m.dim_p, grads.history,
         m.dim_p);
    gemm(m.width[0], m.dim, rows, w.dz[0], int64_t(1), h1, w.product, m.dim_p, grads.product, m.dim_p, grads.product,
         m.dim_p);
    gemm(rows, m.dim, m.width[0], w.dz[0], h1, int64_t(1), m.product, m.dim_p, m.zeros, int64_t(0), w.dproduct,
         m.dim_p);
    if (args.grad_rows.needed)
        gemm(rows, m.dim, m.width[0], w.dz[0], h1, int64_t(1), m.history, m.dim_p, w.drows, m.dim_p, w.drows, m.dim_p);
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
        if (args.grad_rows.needed)
            write_history_gradients(call, entry, 0, entry.rows, w.drows + row * m.dim_p, w.shared_flat);
    }
}

template <typename T>
void backward_block(const Call<T>& call, const Block<T>& block, int only, const PartialGrads<T>& grads) {
    const LocalActivationArgs<T>& args = *call.args;
    const PackedMlp<T>& m = call.mlp;
    const int64_t h1 = m.width_p[0];
    Workspace<T> w;
    w.lay_out(m, block.memory, true, call.plan->shared_rows);
    for_chunks(call, block, w, [&](int64_t chunk, int64_t count) {
        for (int64_t x = 0; x < count * h1; ++x) w.dc[x] = 0;
        for (int64_t x = 0; x < count * m.dim_p; ++x) w.dq[x] = 0;
        for (int64_t i = 0; i < count; ++i)
            if (call.plan->entries[chunk + i].rows >= w.fold_from)
                backward_folded(call, block, chunk + i, i, only, w, grads);
        flat_tiles(call, chunk, count, w, [&](const Stretch* stretches, int64_t used, int64_t rows) {
            backward_flat(call, chunk, stretches, used, rows, only, w, grads);
        });
        if (only < m.hidden) return;
        // db1 += dc, dWq += dc q^T, dq += (Wq + Wd)^T dc
        add_columns(w.dc, count, h1, grads.bias[0]);
        gemm(m.width[0], m.dim, count, w.dc, int64_t(1), h1, w.queries, m.dim_p, grads.query, m.dim_p, grads.query,
             m.dim_p);
        if (!args.grad_query.needed) return;
        gemm(count, m.dim, m.width[0], w.dc, h1, int64_t(1), m.query, m.dim_p, w.dq, m.dim_p, w.dq, m.dim_p);
        for (int64_t i = 0; i < count; ++i) {
            const Entry& entry = call.plan->entries[chunk + i];
            const T* dq = w.dq + i * m.dim_p;
            if (args.features == Features::kOuter)
                copy_values(dq, m.dim_p, call.outer.grad_queries + (block.slot + chunk + i - block.first) * m.dim_p);
            else if (entry.partial >= 0)
                copy_values(dq, m.dim, call.partial_sums + entry.partial * m.dim);
            else
                write_row_grad(args.query, args.grad_query, kStorageOf<T>, entry.query, dq);
        }
    });
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
