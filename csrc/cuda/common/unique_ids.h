// Ranks the ids of a batch without a sort, by a bitmap of the table's rows and the set bits before every word:
//
//   ids         67  3  67  5                         bit id % 32 of word id / 32
//   bitmap      word 0: bits 3, 5   word 1: -   word 2: bit 3
//   word_rank   0                   2           2
//   rank of 67  = word_rank[2] + set bits below bit 3 of word 2 = 2,  unique[2] = 67
//
// It costs N atomics, and V / 8 bytes written and read three times. For N = 52,000 of V = 1,000,000 rows that is 0.4
// MB, where a radix sort moves 3 times N keys and positions.
#pragma once

#include <cstdint>

#include "common/workspace.h"
#include "din_kernels/cuda.h"
#include "din_kernels/sparse_update.h"

namespace din_kernels::cuda {

constexpr int64_t kWordsPerTile = 1024;  // a scan has 256 threads with 4 values each

struct UniquePlan {
    int64_t words, tiles;                  // of the bitmap
    int64_t bitmap, word_rank, tile_sums;  // byte offsets in the workspace
};

inline UniquePlan plan_unique(int64_t rows, Carve& carve) {
    UniquePlan plan{ceil_div(rows, 32), 0, 0, 0, 0};
    plan.tiles = ceil_div(plan.words, kWordsPerTile);
    plan.bitmap = carve.add(plan.words, 4);
    plan.word_rank = carve.add(plan.words, 4);
    plan.tile_sums = carve.add(plan.tiles, 4);
    return plan;
}

// Marks the ids but padding_idx (and what lies outside 0 .. rows) and ranks them. Writes the unique ids in ascending
// order to `unique` [entries], -1 behind them, and their number to `unique_count` [1].
void unique_ids(const UniquePlan& plan, void* workspace, Ids ids, int64_t entries, int64_t rows, int64_t padding_idx,
                int64_t* unique, int64_t* unique_count, Stream stream);

// Exclusive prefix sums of values [size], uint32_t or int64_t; tile_sums [ceil(size / kWordsPerTile)] is scratch.
template <typename T>
void exclusive_scan(const T* values, int64_t size, T* tile_sums, T* before, Stream stream);

}  // namespace din_kernels::cuda
