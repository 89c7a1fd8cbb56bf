// What the driver hands to the kernels of an ISA: the rows, cut into blocks, and numbers per channel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "din_kernels/dice.h"
#include "kernel_table.h"

namespace din_kernels::cpu {

// Elements of one block: 128 KB of floats, so that a second look at a block finds it in L2.
constexpr int64_t kDiceBlock = 32 * 1024;

template <typename S>
struct DiceCall {
    using T = Wide<S>;
    const DiceArgs<S>* args;
    const DiceGrads<S>* grads;  // backward alone
    int64_t block_rows;
    const T* scale;    // [C], r weight
    const T* bias;     // [C]
    T* partials;       // [blocks, sums, C] of statistics or grad_sums
    S* y;              // forward alone
    const T* mean_u;   // [C]: sum of u over the valid rows / n, with u = dL/dz; 0 in evaluation
    const T* mean_ud;  // [C]: r^2 sum of u (s - mean) / n; 0 in evaluation

    int64_t first(int64_t block) const { return block * block_rows; }
    int64_t last(int64_t block) const { return std::min(args->rows, (block + 1) * block_rows); }
    bool valid(int64_t row) const { return !args->mask || args->mask[row]; }
};

constexpr int kStatistics = 3, kGradSums = 3;  // sums in partials

template <typename S>
struct DiceKernels {
    // Of the valid rows of a block, of which there are `count`: mean m, sum of x - m, sum of (x - m)^2.
    void (*statistics)(const DiceCall<S>&, int64_t block, int64_t count);
    void (*forward)(const DiceCall<S>&, int64_t block);
    // Sums over the valid rows of a block: dy s (1 - p), u, u (s - mean).
    void (*grad_sums)(const DiceCall<S>&, int64_t block);
    void (*backward)(const DiceCall<S>&, int64_t block);
};

DIN_KERNELS_TABLES(KernelTable<DiceKernels>, dice_kernels)

}  // namespace din_kernels::cpu
