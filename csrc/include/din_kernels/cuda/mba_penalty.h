// mba_penalty on a GPU; formulas in din_kernels/mba_penalty.h.
#pragma once

#include "din_kernels/cuda.h"
#include "din_kernels/sparse_update.h"

namespace din_kernels::cuda {

struct MbaPenalty {
    DType dtype;
    int64_t rows, dim, entries;  // V, D, N; V and N below 2^31
    const void* weight;          // [V, D]
    Ids ids;                     // [N]; forward only. Ids outside 0 .. V are left out
    Counts counts;               // [V]
    double coeff;
    int64_t padding_idx;    // left out; -1: none
    int64_t* unique;        // [N], written by forward, read by backward
    int64_t* unique_count;  // [1]
    float* penalty;         // [1], forward only
    void* workspace;        // mba_penalty_workspace(V, N) bytes; forward only
};

int64_t mba_penalty_workspace(int64_t rows, int64_t entries);
void mba_penalty_forward(const MbaPenalty& call, Stream stream);

// grad [1] is on the device. Writes out [out_rows, D], row i of unique[i] and zeros behind unique_count, or (dense) the
// rows of unique in out [V, D]; out_rows is N then.
void mba_penalty_backward(const MbaPenalty& call, const float* grad, bool dense, int64_t out_rows, void* out,
                          Stream stream);

}  // namespace din_kernels::cuda
