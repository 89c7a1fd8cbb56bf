// Mini-batch aware regularization (DIN, section 5.1, equations 4 and 5) as plain C++: what a call is, on a CPU and on a
// GPU.
#pragma once

#include "din_kernels/arrays.h"

namespace din_kernels {

// penalty = (coeff / 2) sum over the unique ids j of ||w_j||^2 / n_j;   d penalty / d w_j = coeff w_j / n_j
struct MbaPenalty {
    DType dtype;
    int64_t rows, dim, entries;  // V, D, N; V and N below 2^32, on a GPU below 2^31
    const void* weight;          // [V, D]
    Ids ids;                     // [N], within 0 .. V; forward alone
    Counts counts;
    double coeff;
    int64_t padding_idx;  // left out; -1: none
    int64_t* unique;  // [N]: the unique ids but padding_idx in ascending order, -1 behind them; written by the forward
    // Backward alone.
    bool dense;  // the gradient of unique[i] goes to row unique[i] of out [V, D], else to row i of out [.., D]
    void* out;
};

// On the CPU: writes `unique` and how many ids it holds, returns the penalty. And the gradient for the first `count`
// entries of `unique`, times `grad`.
double mba_penalty_forward(const MbaPenalty& call, int64_t& count, int threads);
void mba_penalty_backward(const MbaPenalty& call, int64_t count, double grad, int threads);

}  // namespace din_kernels
