// sparse_update on a GPU; formulas in din_kernels/sparse_update.h.
#pragma once

#include "din_kernels/cuda.h"
#include "din_kernels/sparse_update.h"

namespace din_kernels::cuda {

struct SparseUpdate {
    DType dtype;                 // of weight and grads
    int64_t rows, dim, entries;  // V, D, N; V and N below 2^31
    void* weight;                // [V, D]
    float* first;                // [V, D], row-wise Adagrad [V]; or null
    float* second;               // [V, D] or null
    Ids ids;                     // [N]; ids outside 0 .. V are left out
    const void* grads;           // [N, D]
    Counts counts;               // [V], or null
    int64_t padding_idx;         // never touched; -1: none
    UpdateRule rule;
    float lr, step, beta1, beta2, eps, coeff;
    bool maximize, decoupled;
    bool deterministic;  // gradients of equal ids are added in the order of their positions, else in any order
    void* workspace;     // sparse_update_workspace(V, D, N) bytes
};

int64_t sparse_update_workspace(int64_t rows, int64_t dim, int64_t entries);
void sparse_update(const SparseUpdate& call, Stream stream);

}  // namespace din_kernels::cuda
