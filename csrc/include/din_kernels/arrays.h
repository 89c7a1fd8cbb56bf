// Arrays of several element types, as more than one op takes them.
#pragma once

#include <cstdint>

namespace din_kernels {

// 16-bit floats as memory holds them. Kernels read and write them, and compute in float.
struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

// What kernels compute in for elements S.
template <typename S>
struct WideOf {
    using type = S;
};
template <>
struct WideOf<BFloat16> {
    using type = float;
};
template <>
struct WideOf<Float16> {
    using type = float;
};
template <typename S>
using Wide = typename WideOf<S>::type;

// Integers of either width: the ids of a batch.
struct Ids {
    const void* data;
    bool is_int64;  // else int32
};

enum class CountType { kInt32, kInt64, kFloat, kDouble };

// n_j, the training samples in which id j appears; 0 (never seen in training) counts as 1, this batch.
struct Counts {
    const void* data;  // [V], or null: no regularization
    CountType type;
};

}  // namespace din_kernels
