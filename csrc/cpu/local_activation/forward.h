// Forward of one block of entries: z1 -> act -> z2 -> act -> s -> w -> pooled, tile by tile.
#pragma once

#include "local_activation/tile.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// Weighted sum so far; under softmax with weights exp(s - top), whose sum is `total`.
template <typename T>
struct Pooling {
    T top, total;
    T* sum;  // [Dp]
};

template <typename T>
inline void start(const PackedMlp<T>& m, Pooling<T>& p) {
    p.top = -__builtin_inff();
    p.total = 0;
    for (int64_t d = 0; d < m.dim_p; ++d) p.sum[d] = 0;
}

// Whether the row at `position` has a weight. Selecting by it, never multiplying, keeps what is masked out of the sums.
inline bool has_weight(const LocalActivation& args, int64_t position) {
    return !args.row_mask || args.row_mask[row_at(args, position)];
}

// sum += w^T K for `rows` rows from `position` with scores s; without normalization w = s.
template <typename T>
void pool(const LocalActivation& args, const PackedMlp<T>& m, int64_t position, const T* tile, T* scores, int64_t rows,
          T* returned, Pooling<T>& p) {
    const bool masked = args.row_mask;
    const auto drop_masked = [&] {
        for (int64_t t = 0; masked && t < rows; ++t)
            if (!has_weight(args, position + t)) scores[t] = 0;
    };
    if (args.normalize == Normalize::kNone) drop_masked();
    if (returned)
        for (int64_t t = 0; t < rows; ++t) returned[t] = scores[t];
    if (args.normalize == Normalize::kSoftmax) {
        T top = p.top;
        for (int64_t t = 0; t < rows; ++t)
            if (!(scores[t] <= top) && has_weight(args, position + t)) top = scores[t];  // NaN is taken over, and stays
        const T rescale = p.total == 0 ? T(0) : exp(splat(p.top - top))[0];
        p.total *= rescale;
        for (int64_t d = 0; d < m.dim_p; d += kLanes<T>) store(p.sum + d, load(p.sum + d) * rescale);
        for (int64_t t = 0; t < rows; t += kLanes<T>) store(scores + t, exp(load(scores + t) - top));
        drop_masked();
        for (int64_t t = 0; t < rows; ++t) p.total += scores[t];
        p.top = top;
    }
    gemm(int64_t(1), m.dim, rows, scores, int64_t(0), int64_t(1), tile, m.dim_p, p.sum, int64_t(0), p.sum, m.dim_p);
}

template <typename T>
void finish(const Call<T>& call, const Entry& entry, Pooling<T>& p) {
    const LocalActivation& args = call.args;
    const PackedMlp<T>& m = call.mlp;
    if (entry.partial >= 0) {
        T* slot = call.partial_sums + entry.partial * (m.dim_p + 2);
        copy_values(p.sum, m.dim_p, slot);
        slot[m.dim_p] = p.top;
        slot[m.dim_p + 1] = p.total;
        return;
    }
    if (args.normalize == Normalize::kSoftmax) {
        if (p.total != 0)  // 0: every row is masked
            for (int64_t d = 0; d < m.dim_p; d += kLanes<T>) store(p.sum + d, load(p.sum + d) / p.total);
        args.logsumexp[entry.query] = double(p.top) + __builtin_log(double(p.total));
        // Not exp(s - logsumexp): of scores near 1e4 that is rounded to 1e-3, which would scale all weights.
        if (entry.pair >= 0)
            for (int64_t t = 0; t < entry.rows; ++t) {
                T& weight = call.pair_weights[entry.pair + t];
                weight = has_weight(args, entry.position + t) ? exp(splat(weight - p.top))[0] / p.total : T(0);
            }
    }
    copy_values(p.sum, m.dim, call.pooled + entry.query * m.dim);
}

template <typename T>
void forward_block(const Call<T>& call, const Block<T>& block) {
    const LocalActivation& args = call.args;
    const PackedMlp<T>& m = call.mlp;
    Workspace<T> w;
    w.lay_out(m, block.memory, false, 0);
    Pooling<T> pooling{0, 0, w.pooled};
    const auto returned = [&](const Entry& e, int64_t t) {
        return e.pair < 0 ? nullptr : call.pair_weights + e.pair + t;
    };

    for_chunks(call, block, w, [&](int64_t chunk, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
            const Entry& entry = call.plan->entries[chunk + i];
            if (entry.rows < w.fold_from) continue;
            start(m, pooling);
            folded_tiles(call, block, chunk + i, i, w, [&](int64_t t, const T* tile, int64_t rows) {
                mlp_forward(call, rows, w);
                pool(args, m, entry.position + t, tile, w.scores, rows, returned(entry, t), pooling);
            });
            finish(call, entry, pooling);
        }
        flat_tiles(call, chunk, count, w, [&](const Stretch* stretches, int64_t used, int64_t rows) {
            mlp_forward(call, rows, w);
            for (int64_t s = 0; s < used; ++s) {
                const Entry& entry = call.plan->entries[chunk + stretches[s].index];
                T scores[(kFoldForward + 15) / 16 * 16] = {};
                for (int64_t t = 0; t < entry.rows; ++t) scores[t] = w.scores[stretches[s].tile_row + t];
                start(m, pooling);
                pool(args, m, entry.position, w.tile + stretches[s].tile_row * m.dim_p, scores, entry.rows,
                     returned(entry, 0), pooling);
                finish(call, entry, pooling);
            }
        });
    });
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
