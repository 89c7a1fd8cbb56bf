// sparse_update on a GPU; formulas and fields in din_kernels/sparse_update.h. Ids outside 0 .. V are left out.
#pragma once

#include "din_kernels/cuda.h"
#include "din_kernels/sparse_update.h"

namespace din_kernels::cuda {

struct SparseUpdate : din_kernels::SparseUpdate {
    bool deterministic;  // gradients of equal ids are added in the order of their positions, else in any order
    void* workspace;     // sparse_update_workspace(V, D, N) bytes
};

int64_t sparse_update_workspace(int64_t rows, int64_t dim, int64_t entries);
void sparse_update(const SparseUpdate& call, Stream stream);

}  // namespace din_kernels::cuda
