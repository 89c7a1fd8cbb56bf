// Batch statistics of a hidden layer, for Dice in training: the layers below it are computed again tile by tile.
#pragma once

#include "local_activation/tile.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// Merges the moments of a tile z [rows, Hp], taken about its own mean (Chan, Golub, LeVeque 1979).
template <typename T>
void add_tile(const T* z, int64_t rows, int64_t width, Moments& total) {
    const double count = total.count + rows, share = rows / count;
    for (int64_t j = 0; j < width; j += kLanes<T>) {
        Vec<T> sum = {}, squares = {};
        for (int64_t i = 0; i < rows; ++i) sum += load(z + i * width + j);
        const Vec<T> mean = sum / T(rows);
        for (int64_t i = 0; i < rows; ++i) {
            const Vec<T> deviation = load(z + i * width + j) - mean;
            squares += deviation * deviation;
        }
        for (int lane = 0; lane < kLanes<T>; ++lane) {
            const double delta = mean[lane] - total.mean[j + lane];
            total.mean[j + lane] += delta * share;
            total.squares[j + lane] += squares[lane] + delta * delta * total.count * share;
        }
    }
    total.count = count;
}

template <typename T>
void moments_block(const Call<T>& call, const Block<T>& block, int layer, Moments& total) {
    const PackedMlp<T>& m = call.mlp;
    Workspace<T> w;
    w.lay_out(m, block.memory, false, 0);
    const auto add = [&](int64_t rows) {
        hidden_forward(call.args, m, rows, layer, w);
        add_tile(w.z[layer], rows, m.width_p[layer], total);
    };
    for_chunks(call, block, w, [&](int64_t chunk, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            if (call.plan->entries[chunk + i].rows >= w.fold_from)
                folded_tiles(call, block, chunk + i, i, w, [&](int64_t, const T*, int64_t rows) { add(rows); });
        flat_tiles(call, chunk, count, w, [&](const Stretch*, int64_t, int64_t rows) { add(rows); });
    });
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
