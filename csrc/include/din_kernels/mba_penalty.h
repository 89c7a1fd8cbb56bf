// Mini-batch aware regularization (DIN, section 5.1, equations 4 and 5) as plain C++.
#pragma once

#include "din_kernels/arrays.h"

namespace din_kernels {

// penalty = (coeff / 2) sum over the unique ids j of ||w_j||^2 / n_j;   d penalty / d w_j = coeff w_j / n_j
template <typename S>
struct MbaPenaltyArgs {
    int64_t rows, dim, entries;  // V, D, N; V and N below 2^32
    const S* weight;             // [V, D]
    Ids ids;                     // [N], within 0 .. V
    int64_t largest;             // at least every id, below V
    Counts counts;
    double coeff;
    int64_t padding_idx;  // left out; -1: none
};

// Writes the unique ids but padding_idx in ascending order to `unique [N]`, -1 behind them; returns the penalty.
template <typename S>
double mba_penalty_forward(const MbaPenaltyArgs<S>& args, int64_t* unique, int threads);

// out[i] = grad coeff w_j / n_j for the first `count` entries j of `unique`, at row i of out [count, D], or (dense) at
// row j of out [V, D].
template <typename S>
void mba_penalty_backward(const MbaPenaltyArgs<S>& args, const int64_t* unique, int64_t count, double grad, bool dense,
                          S* out, int threads);

}  // namespace din_kernels
