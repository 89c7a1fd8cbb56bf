// Arrays of several element types, as more than one op takes them, on a CPU and on a GPU.
#pragma once

#include <cstdint>
#include <utility>

namespace din_kernels {

// A value of an option beside its name in din_kernels/options.py. The tables stand beside the enums, so that a new
// value is added in one place.
template <typename Enum>
using Named = std::pair<const char*, Enum>;

// Element types of floating-point arrays. GPUs have no kernels for kDouble.
enum class DType { kFloat, kDouble, kBf16, kFp16 };

// An array whose element type is known at run time only.
struct TypedArray {
    const void* data;
    DType dtype;
    int64_t size;  // elements
};

// 16-bit floats as memory holds them. Kernels read and write them, and compute in float.
struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

// The type that kernels compute in for elements S.
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

// The ids of a batch: integers of either width.
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
