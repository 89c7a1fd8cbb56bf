// Forward of one block of entries: z1 -> act -> z2 -> act -> s -> w -> pooled, a tile at a time.
#pragma once

#include "local_activation_tile.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// Running pooling of one run: softmax keeps the largest score and the sum of exp(s - top).
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

// sum += w^T K for `rows` rows with scores s; without normalization w = s.
template <typename T>
void pool(const LocalActivationArgs<T>& args, const PackedMlp<T>& m, const T* tile, T* scores, int64_t rows,
          T* returned, Pooling<T>& p) {
    if (returned)
        for (int64_t t = 0; t < rows; ++t) returned[t] = scores[t];
    if (args.normalize == Normalize::kSoftmax) {
        T top = p.top;
        for (int64_t t = 0; t < rows; ++t)
            if (!(scores[t] <= top)) top = scores[t];  // NaN is taken over, and stays
        const T rescale = p.total == 0 ? T(0) : exp(splat(p.top - top))[0];
        p.total *= rescale;
        for (int64_t d = 0; d < m.dim_p; d += kLanes<T>) store(p.sum + d, load(p.sum + d) * rescale);
        for (int64_t t = 0; t < rows; t += kLanes<T>) store(scores + t, exp(load(scores + t) - top));
        for (int64_t t = 0; t < rows; ++t) p.total += scores[t];
        p.top = top;
    }
    gemm(int64_t(1), m.dim_p, rows, scores, int64_t(0), int64_t(1), tile, m.dim_p, p.sum, int64_t(0), p.sum, m.dim_p);
}

template <typename T>
void finish(const Call<T>& call, const Entry& entry, Pooling<T>& p) {
    const LocalActivationArgs<T>& args = *call.args;
    const PackedMlp<T>& m = call.mlp;
    if (entry.partial >= 0) {
        T* slot = call.partial_sums + entry.partial * (m.dim_p + 2);
        copy_row(p.sum, m.dim_p, m.dim_p, slot);
        slot[m.dim_p] = p.top;
        slot[m.dim_p + 1] = p.total;
        return;
    }
    if (args.normalize == Normalize::kSoftmax) {
        for (int64_t d = 0; d < m.dim_p; d += kLanes<T>) store(p.sum + d, load(p.sum + d) / p.total);
        const T logsumexp = p.top + T(__builtin_log(double(p.total)));
        args.logsumexp[entry.query] = logsumexp;
        if (entry.pair >= 0)
            for (int64_t t = 0; t < entry.rows; ++t) {
                T& weight = args.pair_weights[entry.pair + t];
                weight = exp(splat(weight - logsumexp))[0];
            }
    }
    write_row(p.sum, m.dim, false, args.pooled + entry.query * m.dim);
}

template <typename T>
void forward_block(const Call<T>& call, int64_t first, int64_t last, T* memory) {
    const LocalActivationArgs<T>& args = *call.args;
    const PackedMlp<T>& m = call.mlp;
    Workspace<T> w;
    w.lay_out(m, memory, false);
    Pooling<T> pooling{0, 0, w.pooled};
    const auto returned = [&](const Entry& e) { return e.pair < 0 ? nullptr : args.pair_weights + e.pair; };

    for (int64_t chunk = first; chunk < last; chunk += kChunk) {
        const int64_t count = last - chunk < kChunk ? last - chunk : kChunk;
        query_side(call, chunk, count, w);
        for (int64_t i = 0; i < count; ++i) {
            const Entry& entry = call.plan->entries[chunk + i];
            if (entry.rows < kFoldFrom) continue;
            fold_transposed(m, w.queries + i * m.dim_p, w.folded_t);
            start(m, pooling);
            for (int64_t t = 0; t < entry.rows; t += kTile) {
                const int64_t rows = entry.rows - t < kTile ? entry.rows - t : kTile;
                const T* tile = tile_of(args, entry.position + t, rows, m.dim_p, w.tile);
                gemm(rows, m.width_p[0], m.dim, tile, m.dim_p, int64_t(1), w.folded_t, m.width_p[0],
                     w.c + i * m.width_p[0], int64_t(0), w.z[0], m.width_p[0]);
                mlp_forward(args, m, rows, w);
                pool(args, m, tile, w.scores, rows, entry.pair < 0 ? nullptr : returned(entry) + t, pooling);
            }
            finish(call, entry, pooling);
        }
        flat_tiles(call, chunk, count, w, [&](const Stretch* stretches, int64_t used, int64_t rows) {
            mlp_forward(args, m, rows, w);
            for (int64_t s = 0; s < used; ++s) {
                const Entry& entry = call.plan->entries[chunk + stretches[s].index];
                T scores[(kFoldFrom + 15) / 16 * 16] = {};
                for (int64_t t = 0; t < entry.rows; ++t) scores[t] = w.scores[stretches[s].tile_row + t];
                start(m, pooling);
                pool(args, m, w.tile + stretches[s].tile_row * m.dim_p, scores, entry.rows, returned(entry), pooling);
                finish(call, entry, pooling);
            }
        });
    }
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
