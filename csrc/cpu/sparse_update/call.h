// What the driver hands to the kernels of an ISA: the table, the sorted ids, and the blocks that they are cut into.
#pragma once

#include <cstdint>

#include "common/kernel_table.h"
#include "din_kernels/sparse_update.h"

namespace din_kernels::cpu {

// Entries of one block. A row whose entries go beyond its block is summed in parts, one per block, in the blocks'
// order: rows that are in every sample (a small table) are summed by all threads, and the order is the same for any
// number of threads.
//
//     keys    | 2 2 5 5 5 | 5 5 5 5 5 | 5 8 9 9 9 |     sorted ids, cut into blocks
//     partial |           |  5: 5 of  |  5: 1 of  |     share of the row that began before the block
//     update  | 2, 5      |           | 8, 9      |     by the block that holds the row's first entry
constexpr int64_t kUpdateBlock = 512;

template <typename S>
struct UpdateCall {
    const SparseUpdate& args;
    const uint64_t* keys;  // [N], of sorted_ids
    Wide<S>* partials;     // [blocks, D]: block b's share of the row that began before it
    // The call's arrays.
    S* weight = static_cast<S*>(args.weight);              // [V, D]
    Wide<S>* first = static_cast<Wide<S>*>(args.first);    // [V, D], row-wise Adagrad [V], or null
    Wide<S>* second = static_cast<Wide<S>*>(args.second);  // [V, D] or null
    const S* grads = static_cast<const S*>(args.grads);    // [N, D]
};

template <typename S>
struct UpdateKernels {
    void (*partial)(const UpdateCall<S>&, int64_t block);
    void (*update)(const UpdateCall<S>&, int64_t block, Wide<S>* scratch);  // scratch [2, D] of the thread
};

DIN_KERNELS_TABLES(KernelTable<UpdateKernels>, sparse_update_kernels)

}  // namespace din_kernels::cpu
