// The place of an id among the unique ids, for kernels that run after unique_ids.
#pragma once

#include "common/accessors.cuh"
#include "common/unique_ids.h"

namespace din_kernels::cuda {

struct Ranks {
    Global<const uint32_t> bitmap;     // [words]
    Global<const uint32_t> word_rank;  // [words]: set bits in the words before

    Ranks(const UniquePlan& plan, void* workspace)
        : bitmap(carved<uint32_t>(workspace, plan.bitmap), plan.words),
          word_rank(carved<uint32_t>(workspace, plan.word_rank), plan.words) {}

    __device__ bool marked(int64_t id, int64_t rows) const {
        return id >= 0 && id < rows && (bitmap[id / 32] >> (id % 32) & 1u) != 0;
    }
    __device__ uint32_t operator[](int64_t id) const {
        const uint32_t below = bitmap[id / 32] & ((1u << (id % 32)) - 1u);
        return word_rank[id / 32] + uint32_t(__popc(below));
    }
};

}  // namespace din_kernels::cuda
