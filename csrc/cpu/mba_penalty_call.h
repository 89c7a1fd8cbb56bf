// What the driver hands to the kernels of an ISA.
#pragma once

#include <cstdint>

#include "din_kernels/mba_penalty.h"

namespace din_kernels::cpu {

// Rows of one block; their sums are added in the blocks' order.
constexpr int64_t kPenaltyBlock = 256;

template <typename T>
struct PenaltyKernels {
    // sum of ||w_j||^2 / n_j over ids[0 .. count)
    double (*forward)(const MbaPenaltyArgs<T>&, const int64_t* ids, int64_t count);
    // scale w_j / n_j to row i of out, or (dense) to row j
    void (*backward)(const MbaPenaltyArgs<T>&, const int64_t* ids, int64_t count, double scale, bool dense, T* out);
};

namespace baseline {
extern const PenaltyKernels<float> mba_penalty_float;
extern const PenaltyKernels<double> mba_penalty_double;
}  // namespace baseline
namespace avx2 {
extern const PenaltyKernels<float> mba_penalty_float;
extern const PenaltyKernels<double> mba_penalty_double;
}  // namespace avx2
namespace avx512 {
extern const PenaltyKernels<float> mba_penalty_float;
extern const PenaltyKernels<double> mba_penalty_double;
}  // namespace avx512

}  // namespace din_kernels::cpu
