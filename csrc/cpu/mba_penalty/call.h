// What the driver hands to the kernels of an ISA.
#pragma once

#include <cstdint>

#include "din_kernels/mba_penalty.h"
#include "common/kernel_table.h"

namespace din_kernels::cpu {

// Rows of one block; their sums are added in the blocks' order.
constexpr int64_t kPenaltyBlock = 256;

template <typename S>
struct PenaltyKernels {
    // sum of ||w_j||^2 / n_j over ids[0 .. count)
    double (*forward)(const MbaPenaltyArgs<S>&, const int64_t* ids, int64_t count);
    // scale w_j / n_j to row i of out, or (dense) to row j
    void (*backward)(const MbaPenaltyArgs<S>&, const int64_t* ids, int64_t count, double scale, bool dense, S* out);
};

DIN_KERNELS_TABLES(KernelTable<PenaltyKernels>, mba_penalty_kernels)

}  // namespace din_kernels::cpu
