// What the driver hands to the kernels of an ISA: the table, the sorted ids, and the blocks that they are cut into.
#pragma once

#include <cstdint>

#include "din_kernels/sparse_update.h"
#include "common/kernel_table.h"

namespace din_kernels::cpu {

// Entries of one block. A row whose entries go beyond its block is summed in parts, one per block, in the blocks'
// order: rows that are in every sample (a small table) are summed by all threads, and the order is the same for any
// number.
constexpr int64_t kUpdateBlock = 512;

template <typename S>
struct UpdateCall {
    const SparseUpdateArgs<S>* args;
    const uint64_t* keys;  // [N], of sorted_ids
    Wide<S>* partials;     // [blocks, D]: block b's share of the row that began before it
};

template <typename S>
struct UpdateKernels {
    void (*partial)(const UpdateCall<S>&, int64_t block);
    void (*update)(const UpdateCall<S>&, int64_t block, Wide<S>* scratch);  // scratch [2, D] of the thread
};

DIN_KERNELS_TABLES(KernelTable<UpdateKernels>, sparse_update_kernels)

}  // namespace din_kernels::cpu
