// What the driver hands to the kernels of an ISA: the call with its arrays by type, and the blocks that rows are cut
// into.
#pragma once

#include <cstdint>

#include "common/kernel_table.h"
#include "din_kernels/mba_penalty.h"

namespace din_kernels::cpu {

// Rows of one block; their sums are added in the blocks' order.
constexpr int64_t kPenaltyBlock = 256;

template <typename S>
struct PenaltyCall {
    const MbaPenalty& args;
    const S* weight = static_cast<const S*>(args.weight);  // [V, D]
    S* out = static_cast<S*>(args.out);                    // [V, D] or a row per id; backward alone
};

template <typename S>
struct PenaltyKernels {
    // sum of ||w_j||^2 / n_j over entries first .. first + count of args.unique
    double (*forward)(const PenaltyCall<S>&, int64_t first, int64_t count);
    // scale w_j / n_j for the same
    void (*backward)(const PenaltyCall<S>&, int64_t first, int64_t count, double scale);
};

DIN_KERNELS_TABLES(KernelTable<PenaltyKernels>, mba_penalty_kernels)

}  // namespace din_kernels::cpu
