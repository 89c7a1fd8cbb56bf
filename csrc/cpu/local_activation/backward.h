// Backward of one block of entries; the forward is recomputed tile by tile. With g = dL/dpooled:
//   dw = <g, k> + gw;  ds = scale dw (none) or scale w (dw - sum_r w_r dw_r) (softmax)
//   dz_l = (dz_(l+1) W_(l+1)) act'(z_l);  dk = w g + A^T dz1;  dA = sum dz1 k^T;  dc = sum dz1
// Dice in training adds to dz_l what flows through the batch's mean and variance, known after a pass of its own per
// layer.
#pragma once

#include "local_activation/forward.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// From scores to their gradients, for one candidate tile by tile. With softmax
//   ds = scale w (dw - mean),  mean = sum_r w_r dw_r = <g, pooled> + sum_r w_r gw_r  over the candidate's whole
//   history.
template <typename T>
class ScoreGradients {
 public:
    // gradient [Dp]: room for g = dL/dpooled.
    ScoreGradients(const Call<T>& call, const Entry& entry, T* gradient)
        : call_(call), entry_(entry), softmax_(call.args.normalize == Normalize::kSoftmax), g_(gradient) {
        copy_row(call.grad_pooled + entry.query * call.args.dim, call.args.dim, call.mlp.dim_p, gradient);
        mean_ = softmax_ ? softmax_mean() : T(0);
    }

    // For rows offset .. offset + rows of the entry, a tile [rows, Dp]: scores become weights in place, their gradients
    // go to dscores, and w g to drows [rows, Dp]. `last`: these rows are the last of the candidate's whole history.
    void take(int64_t offset, int64_t rows, bool last, const T* tile, T* scores, T* dscores, T* drows) {
        double total = 0;
        for (int64_t t = 0; t < rows; ++t) {
            const T dw = weight_gradient(offset + t, tile + t * call_.mlp.dim_p);
            T weight = softmax_ ? exp(splat(T(scores[t] - call_.args.logsumexp[entry_.query])))[0] : scores[t];
            T ds = softmax_ ? weight * (dw - mean_) : dw;
            if (!has_weight(call_.args, entry_.position + offset + t)) weight = ds = 0;
            total += weight;
            residual_ += ds;
            scores[t] = weight;
            dscores[t] = call_.scale * ds;
            T* const drow = drows + t * call_.mlp.dim_p;
            for (int64_t d = 0; d < call_.mlp.dim_p; d += kLanes<T>) store(drow + d, load(g_ + d) * weight);
        }
        if (!softmax_ || !last || total == 0) return;
        const T share = T(double(call_.args.scale) * residual_ / total);
        for (int64_t t = 0; t < rows; ++t) dscores[t] -= scores[t] * share;
    }

 private:
    // In double: every ds is the difference to it, and their sum would be 0.
    T softmax_mean() const {
        const int64_t dim = call_.args.dim;
        const T* const pooled = call_.pooled + entry_.query * dim;
        double mean = 0;
        for (int64_t d = 0; d < dim; ++d) mean += double(g_[d]) * pooled[d];
        if (call_.grad_pair_weights)
            for (int64_t r = entry_.history_pair; r < entry_.history_pair + entry_.history_rows; ++r)
                mean += double(call_.pair_weights[r]) * call_.grad_pair_weights[r];
        return T(mean);
    }
    // dw = <g, k> + gw of one row.
    T weight_gradient(int64_t row, const T* k) const {
        Vec<T> dot = {};
        for (int64_t d = 0; d < call_.mlp.dim_p; d += kLanes<T>) dot += load(g_ + d) * load(k + d);
        const T dw = sum<T>(dot);
        return call_.grad_pair_weights ? dw + call_.grad_pair_weights[entry_.pair + row] : dw;
    }

    const Call<T>& call_;
    const Entry& entry_;
    const bool softmax_;
    const T* g_;
    T mean_;
    // sum_r w_r (dw_r - mean) of the rows so far. Over the whole history it would be 0 if pooled were exact. The last
    // rows take it, since gradients of the last layer are sums over terms that cancel.
    double residual_ = 0;
};

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
void mlp_backward(const Call<T>& call, int64_t rows, int only, Workspace<T>& w, const PartialGrads<T>& grads) {
    const LocalActivation& args = call.args;
    const PackedMlp<T>& m = call.mlp;
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
    const LocalActivation& args = call.args;
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
            write_row_grad(args.history, args.grad_history, args.dtype, row_at(args, entry.position + offset + t), row);
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

// dWk' += dA, dWp += dA diag(q), dq += sum_h Wp[h] * dA[h]
template <typename T>
void unfold_gradient(const PackedMlp<T>& m, const T* da, const T* q, const PartialGrads<T>& grads, T* dq) {
    for (int64_t h = 0; h < m.width[0]; ++h)
        for (int64_t d = h * m.dim_p, e = 0; e < m.dim_p; d += kLanes<T>, e += kLanes<T>) {
            const Vec<T> dah = load(da + d);
            store(grads.weight_k + d, load(grads.weight_k + d) + dah);
            store(grads.weight_qk + d, load(grads.weight_qk + d) + dah * load(q + e));
            store(dq + e, load(dq + e) + dah * load(m.weight_qk + d));
        }
}

// Long history: A folded once; dA of the run, then its shares for Wk', Wp and q. With outer features dA^T is left in
// the round, where the shares of all entries are taken together.
template <typename T>
void backward_folded(const Call<T>& call, const Block<T>& block, int64_t at, int64_t i, int only, Workspace<T>& w,
                     const PartialGrads<T>& grads) {
    const PackedMlp<T>& m = call.mlp;
    const Entry& entry = call.plan->entries[at];
    const int64_t h1 = m.width_p[0], dim_p = m.dim_p, one = 1, same = 0;
    const bool outer = call.args.features == Features::kOuter, everything = only == m.hidden;
    const bool history_needed = everything && call.args.grad_history.needed, whole = entry.partial < 0;
    const T* q = w.queries + i * dim_p;
    T* outer_da = call.outer.folded_t + (block.slot + at - block.first) * m.dim * h1;
    ScoreGradients<T> score(call, entry, w.gradient);
    folded_tiles(call, block, at, i, w, [&](int64_t t, const T* tile, int64_t rows) {
        // A [H1, Dp], whose rows the history's gradient reads, is made once.
        if (t == 0 && history_needed) outer ? transpose(m, w.folded_t, w.folded) : fold(m, q, w.folded);
        mlp_forward(call, rows, w);
        score.take(t, rows, whole && t + rows == entry.rows, tile, w.scores, w.dscores, w.drows);
        mlp_backward(call, rows, only, w, grads);
        if (!everything) return;
        // dc += column sums of dz1, dA += dz1^T K; the first tile starts from zeros.
        add_columns(w.dz[0], rows, h1, w.dc + i * h1);
        if (outer)
            gemm(m.dim, m.width[0], rows, tile, one, dim_p, w.dz[0], h1, t ? outer_da : m.zeros, t ? h1 : same,
                 outer_da, h1);
        else
            gemm(m.width[0], m.dim, rows, w.dz[0], one, h1, tile, dim_p, t ? w.da : m.zeros, t ? dim_p : same, w.da,
                 dim_p);
        if (!history_needed) return;
        // dK = w g + dz1 A
        gemm(rows, m.dim, m.width[0], w.dz[0], h1, one, w.folded, dim_p, w.drows, dim_p, w.drows, dim_p);
        write_history_gradients(call, entry, t, rows, w.drows, w.shared_rows);
    });
    if (!outer && everything) unfold_gradient(m, w.da, q, grads, w.dq + i * dim_p);
}

// dk += q * dx, dq += sum_t k_t * dx_t for the rows of one candidate in a flat tile, with dx the gradient of q * k.
template <typename T>
void unfold_products(const PackedMlp<T>& m, const Workspace<T>& w, int64_t first, int64_t rows, const T* q, T* dq) {
    for (int64_t t = first; t < first + rows; ++t)
        for (int64_t d = t * m.dim_p, e = 0; e < m.dim_p; d += kLanes<T>, e += kLanes<T>) {
            const Vec<T> dproduct = load(w.dproduct + d);
            store(w.drows + d, load(w.drows + d) + load(q + e) * dproduct);
            store(dq + e, load(dq + e) + load(w.tile + d) * dproduct);
        }
}

// Short histories: weights shared by all candidates, dX = dz1 [Wk', Wp].
template <typename T>
void backward_flat(const Call<T>& call, int64_t chunk, const Stretch* stretches, int64_t used, int64_t rows, int only,
                   Workspace<T>& w, const PartialGrads<T>& grads) {
    const PackedMlp<T>& m = call.mlp;
    const int64_t h1 = m.width_p[0], dim_p = m.dim_p, one = 1, same = 0;
    const bool history_needed = call.args.grad_history.needed;
    mlp_forward(call, rows, w);
    for (int64_t s = 0; s < used; ++s) {
        const Entry& entry = call.plan->entries[chunk + stretches[s].index];
        const int64_t row = stretches[s].tile_row;
        ScoreGradients<T> score(call, entry, w.gradient);
        score.take(0, entry.rows, true, w.tile + row * dim_p, w.scores + row, w.dscores + row, w.drows + row * dim_p);
    }
    mlp_backward(call, rows, only, w, grads);
    if (only < m.hidden) return;
    // dWk' += dz1^T K, dWp += dz1^T (q * K), d(q * K) = dz1 Wp, dK = w g + dz1 Wk'
    gemm(m.width[0], m.dim, rows, w.dz[0], one, h1, w.tile, dim_p, grads.weight_k, dim_p, grads.weight_k, dim_p);
    gemm(m.width[0], m.dim, rows, w.dz[0], one, h1, w.products, dim_p, grads.weight_qk, dim_p, grads.weight_qk, dim_p);
    gemm(rows, m.dim, m.width[0], w.dz[0], h1, one, m.weight_qk, dim_p, m.zeros, same, w.dproduct, dim_p);
    if (history_needed)
        gemm(rows, m.dim, m.width[0], w.dz[0], h1, one, m.weight_k, dim_p, w.drows, dim_p, w.drows, dim_p);
    for (int64_t s = 0; s < used; ++s) {
        const int64_t i = stretches[s].index, row = stretches[s].tile_row;
        const Entry& entry = call.plan->entries[chunk + i];
        add_columns(w.dz[0] + row * h1, entry.rows, h1, w.dc + i * h1);
        unfold_products(m, w, row, entry.rows, w.queries + i * dim_p, w.dq + i * dim_p);
        if (history_needed) write_history_gradients(call, entry, 0, entry.rows, w.drows + row * dim_p, w.shared_flat);
    }
}

template <typename T>
void backward_block(const Call<T>& call, const Block<T>& block, int only, const PartialGrads<T>& grads) {
    const LocalActivation& args = call.args;
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
        gemm(m.width[0], m.dim, count, w.dc, int64_t(1), h1, w.queries, m.dim_p, grads.weight_q, m.dim_p,
             grads.weight_q, m.dim_p);
        if (!args.grad_query.needed) return;
        gemm(count, m.dim, m.width[0], w.dc, h1, int64_t(1), m.weight_q, m.dim_p, w.dq, m.dim_p, w.dq, m.dim_p);
        for (int64_t i = 0; i < count; ++i) {
            const Entry& entry = call.plan->entries[chunk + i];
            const T* dq = w.dq + i * m.dim_p;
            if (args.features == Features::kOuter)
                copy_values(dq, m.dim_p, call.outer.grad_queries + (block.slot + chunk + i - block.first) * m.dim_p);
            else if (entry.partial >= 0)
                copy_values(dq, m.dim, call.partial_sums + entry.partial * m.dim);
            else
                write_row_grad(args.query, args.grad_query, kDTypeOf<T>, entry.query, dq);
        }
    });
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
