// Every kernel is launched here. A launch that cannot be made becomes an exception that names the kernel and the limit,
// and the context stays usable.
#pragma once

#include <stdexcept>
#include <string>

#include "common/device.cuh"
#include "din_kernels/cuda.h"

namespace din_kernels::cuda {

struct Grid {
    int64_t x = 1, y = 1;
};

constexpr int64_t kMaxGridX = (int64_t(1) << 31) - 1, kMaxGridY = 65535;

inline void check_limits(const char* name, Grid grid, int threads, size_t shared_bytes) {
    const auto refuse = [&](const char* what, int64_t got, int64_t limit) {
        throw LaunchError(std::string("kernel ") + name + " needs " + std::to_string(got) + " " + what +
                          ", the limit is " + std::to_string(limit));
    };
    if (grid.x > kMaxGridX) refuse("blocks in x", grid.x, kMaxGridX);
    if (grid.y > kMaxGridY) refuse("blocks in y", grid.y, kMaxGridY);
    if (threads > 1024) refuse("threads per block", threads, 1024);
    const int64_t limit = device_limits().shared_per_block;
    if (int64_t(shared_bytes) > limit) refuse("bytes of shared memory per block", int64_t(shared_bytes), limit);
}

// The reason why the runtime refused a launch; error is null where it took it.
struct Refusal {
    const char* error = nullptr;
    bool no_code = false;  // the module has no code for the device's architecture
};

inline void check(const char* name, const Refusal& refusal) {
    if (refusal.error == nullptr) return;
    std::string message = std::string("kernel ") + name + ": " + refusal.error;
    if (refusal.no_code)
        message += "; this build has code for " + std::string(built_architectures()) + ", the device is sm_" +
                   std::to_string(device_limits().architecture);
    throw LaunchError(message);
}

#ifdef DIN_KERNELS_EMULATE

template <typename... Parameters, typename... Arguments>
Refusal submit(const char* name, void (*kernel)(Parameters...), Grid grid, int threads, size_t shared_bytes, Stream,
               const Arguments&... arguments) {
    if (emulation::device().architecture != emulation::kArchitecture)
        return {"no kernel image is available for execution on the device", true};
    emulation::run_grid(name, {unsigned(grid.x), unsigned(grid.y), 1}, unsigned(threads), shared_bytes,
                        [&] { kernel(arguments...); });
    return {};
}

#else

inline Refusal refusal_of(cudaError_t error) {
    if (error == cudaSuccess) return {};
    cudaGetLastError();  // the runtime keeps the error for its next caller otherwise
    return {cudaGetErrorString(error),
            error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction};
}

template <typename... Parameters, typename... Arguments>
Refusal submit(const char*, void (*kernel)(Parameters...), Grid grid, int threads, size_t shared_bytes, Stream stream,
               const Arguments&... arguments) {
    // A launch may use 48 KB without asking. Beyond that it asks for the device's limit, not for its own size: the
    // attribute belongs to the kernel, and another thread may set it between here and the launch.
    if (shared_bytes > 48 * 1024) {
        const int limit = int(device_limits().shared_per_block);
        const Refusal refusal =
            refusal_of(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit));
        if (refusal.error) return refusal;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(grid.x), unsigned(grid.y));
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    return refusal_of(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

#endif

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Grid grid, int threads, size_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
    if (grid.x == 0 || grid.y == 0) return;
    check_limits(name, grid, threads, shared_bytes);
    check(name, submit(name, kernel, grid, threads, shared_bytes, stream, arguments...));
}

}  // namespace din_kernels::cuda
