// What the driver hands to the kernels of an ISA: the rows, cut into blocks, and numbers per channel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/kernel_table.h"
#include "din_kernels/dice.h"

namespace din_kernels::cpu {

// Elements of one block: enough rows that adding up the blocks costs nothing, and blocks enough for the threads.
constexpr int64_t kDiceBlock = 32 * 1024;

// Numbers per channel are padded to Cp, a multiple of every vector.
constexpr int64_t kDicePad = 16;

// Bytes of a tensor from which its rows, where they begin on cache lines, are written past the caches: together with
// those that are read it would not stay there, and a store through the cache reads the line first, a fifth of the time.
constexpr int64_t kDiceStream = int64_t(16) << 20;

// The rows are cut into blocks, and each block leaves its sums over the channels in `partials`:
//
//     x [N, C]   | block_rows rows | block_rows rows | ... | the rest |
//     partials   | sum 0  [Cp]     | sum 0  [Cp]     |     one part per block, added up in their order in double
//                | sum 1  [Cp]     | sum 1  [Cp]     |
//                | sum 2  [Cp]     | sum 2  [Cp]     |
template <typename S>
struct DiceCall {
    using T = Wide<S>;
    const Dice& args;
    int64_t block_rows, padded;  // padded: Cp
    const T* alpha;              // [Cp], as all of the following
    const T* mean;
    const T* scale;    // r weight
    const T* bias;     // 0 where there is none
    const T* mean_u;   // sum of u over the valid rows / n, with u = dL/dz; 0 in evaluation
    const T* mean_ud;  // r^2 sum of u (s - mean) / n; 0 in evaluation
    T* partials;       // [blocks, kStatistics or kGradSums, Cp]
    // The call's arrays [N, C]; those that the pass does not use are null.
    const S* x = static_cast<const S*>(args.x);
    S* y = static_cast<S*>(args.y);
    const S* grad_y = static_cast<const S*>(args.grad_y);
    S* grad_x = static_cast<S*>(args.grad_x);

    int64_t first(int64_t block) const { return block * block_rows; }
    int64_t last(int64_t block) const { return std::min(args.rows, (block + 1) * block_rows); }
    bool valid(int64_t row) const { return !args.mask || args.mask[row]; }
};

constexpr int kStatistics = 3, kGradSums = 3;  // sums in partials

template <typename S>
struct DiceKernels {
    using Kernel = void (*)(const DiceCall<S>&, int64_t block);
    // Of the valid rows of a block: a number m near their mean, sum of x - m, sum of (x - m)^2.
    Kernel statistics;
    Kernel forward[2];  // [1] writes past the caches, as below
    // In evaluation: dx, and the sums over the valid rows of dy s (1 - p), u, u (s - mean).
    Kernel backward[2];
    // In training: the sums first, then, with mean_u and mean_ud, dx.
    Kernel backward_sums[2], backward_rest;
};

DIN_KERNELS_TABLES(KernelTable<DiceKernels>, dice_kernels)

}  // namespace din_kernels::cpu
