// mba_penalty on a GPU; formulas and fields in din_kernels/mba_penalty.h. Ids outside 0 .. V are left out.
#pragma once

#include "din_kernels/cuda.h"
#include "din_kernels/mba_penalty.h"

namespace din_kernels::cuda {

struct MbaPenalty : din_kernels::MbaPenalty {
    int64_t* unique_count;  // [1], written by the forward, read by the backward
    float* penalty;         // [1], forward alone
    void* workspace;        // mba_penalty_workspace(V, N) bytes, forward alone
    // Backward alone.
    const float* grad;  // [1]
    int64_t out_rows;   // rows of `out` that are written, zeros behind unique_count; with `dense` N
};

int64_t mba_penalty_workspace(int64_t rows, int64_t entries);
void mba_penalty_forward(const MbaPenalty& call, Stream stream);
void mba_penalty_backward(const MbaPenalty& call, Stream stream);

}  // namespace din_kernels::cuda
