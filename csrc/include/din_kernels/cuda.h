// What all CUDA kernels share, as plain C++. Pointers are of the current device, work is queued on `Stream`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "din_kernels/arrays.h"

namespace din_kernels::cuda {

using Stream = void*;  // cudaStream_t

// Arrays of the type that kernels compute in.
inline float* fp32(void* array) { return static_cast<float*>(array); }
inline const float* fp32(const void* array) { return static_cast<const float*>(array); }

// A launch that failed or that the device cannot serve: names the kernel and the limit.
class LaunchError : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Of the current device.
struct DeviceLimits {
    int architecture;  // 10 major + minor
    int multiprocessors;
    int64_t shared_per_block;  // bytes, with opt-in
};
DeviceLimits device_limits();
const char* built_architectures();  // that the module has code for

}  // namespace din_kernels::cuda
