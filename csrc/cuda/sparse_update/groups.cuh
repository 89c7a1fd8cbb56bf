// The entries of a batch by id, without a sort.
#pragma once

#include "common/accessors.cuh"
#include "din_kernels/cuda/sparse_update.h"
#include "sparse_update/plan.h"

namespace din_kernels::cuda {

// Group r holds the entries of the r-th unique id, order[begin[r]] .. order[begin[r] + size[r] - 1]:
//
//   ids      7 3 7 9 3 7            entries 0 .. 5
//   unique   3   7     9            group 0, 1, 2
//   begin    0   2     5
//   order    1 4 0 2 5 3            in any order within a group, or ascending where the call is deterministic
struct Groups {
    Global<const int64_t> unique;        // [N]
    Global<const int64_t> unique_count;  // [1]
    Global<uint32_t> size;               // [N]
    Global<uint32_t> begin;              // [N]
    Global<uint32_t> ticket;             // [N]: place of an entry in its group
    Global<uint32_t> order;              // [N]: entries
};

// Gathers the batch's entries into groups, in the workspace.
Groups group_entries(const SparseUpdate& call, const SparseUpdatePlan& plan, Stream stream);

}  // namespace din_kernels::cuda
