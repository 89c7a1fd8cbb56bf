// Ids of either width and counts of four types, as kernels on embedding tables read them.
#pragma once

#include "common/accessors.cuh"
#include "din_kernels/sparse_update.h"

namespace din_kernels::cuda {

struct IdArray {
    Ids ids;
    int64_t size;  // N

    __device__ int64_t operator[](int64_t at) const {
        if (ids.is_int64) return Global<const int64_t>(static_cast<const int64_t*>(ids.data), size)[at];
        return Global<const int32_t>(static_cast<const int32_t*>(ids.data), size)[at];
    }
};

struct CountArray {
    Counts counts;
    int64_t size;  // V

    __device__ explicit operator bool() const { return counts.data != nullptr; }
    // n_j, with 1 for 0: an id that was never seen in training appears in this batch.
    __device__ float operator[](int64_t id) const {
        const float n = value(id);
        return n > 1.0f ? n : 1.0f;
    }

 private:
    template <typename T>
    __device__ float as(int64_t id) const {
        return float(Global<const T>(static_cast<const T*>(counts.data), size)[id]);
    }
    __device__ float value(int64_t id) const {
        switch (counts.type) {
            case CountType::kInt32:
                return as<int32_t>(id);
            case CountType::kInt64:
                return as<int64_t>(id);
            case CountType::kFloat:
                return as<float>(id);
            default:
                return as<double>(id);
        }
    }
};

}  // namespace din_kernels::cuda
