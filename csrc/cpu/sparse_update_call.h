// What the driver hands to the kernels of an ISA: the table, the sorted ids, and the blocks that they are cut into.
#pragma once

#include <cstdint>

#include "din_kernels/sparse_update.h"

namespace din_kernels::cpu {

// Entries of one block. A row whose entries go beyond its block is summed in parts, one per block, in the blocks'
// order: rows that are in every sample (a small table) are summed by all threads, and the order is the same for any
// number.
constexpr int64_t kUpdateBlock = 512;

template <typename T>
struct UpdateCall {
    const SparseUpdateArgs<T>* args;
    const uint64_t* keys;  // [N], of sorted_ids
    T* partials;           // [blocks, D]: block b's share of the row that began before it
};

template <typename T>
struct UpdateKernels {
    void (*partial)(const UpdateCall<T>&, int64_t block);
    void (*update)(const UpdateCall<T>&, int64_t block, T* row);  // row [D]: scratch of the thread
};

namespace baseline {
extern const UpdateKernels<float> sparse_update_float;
extern const UpdateKernels<double> sparse_update_double;
}  // namespace baseline
namespace avx2 {
extern const UpdateKernels<float> sparse_update_float;
extern const UpdateKernels<double> sparse_update_double;
}  // namespace avx2
namespace avx512 {
extern const UpdateKernels<float> sparse_update_float;
extern const UpdateKernels<double> sparse_update_double;
}  // namespace avx512

}  // namespace din_kernels::cpu
