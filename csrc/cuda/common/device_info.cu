#include "din_kernels/device_info.h"

#include <cuda_runtime.h>

#include "din_kernels/cuda.h"

namespace din_kernels::cuda {

DeviceInfo device_info() {
    DeviceInfo info{};
    cudaRuntimeGetVersion(&info.runtime_version);
    cudaDriverGetVersion(&info.driver_version);
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    for (int i = 0; i < count && error == cudaSuccess; ++i) {
        cudaDeviceProp device;
        error = cudaGetDeviceProperties(&device, i);
        if (error == cudaSuccess)
            info.devices.push_back(
                {device.name, device.major, device.minor, device.multiProcessorCount, device.totalGlobalMem});
    }
    if (error != cudaSuccess) {
        info.devices.clear();
        info.unavailable = info.driver_version == 0 ? "no NVIDIA driver" : cudaGetErrorString(error);
        cudaGetLastError();  // the runtime keeps the error for its next caller otherwise
    } else if (count == 0) {
        info.unavailable = "no CUDA device";
    }
    return info;
}

const char* built_architectures() { return DIN_KERNELS_CUDA_ARCHITECTURES; }

DeviceLimits device_limits() {
    // Every launch asks: cudaDeviceGetAttribute reads a table of the runtime and does not ask the device.
    int device = 0, major = 0, minor = 0, multiprocessors = 0, shared = 0;
    cudaError_t error = cudaGetDevice(&device);
    const auto get = [&](int* value, cudaDeviceAttr attribute) {
        if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
    };
    get(&major, cudaDevAttrComputeCapabilityMajor);
    get(&minor, cudaDevAttrComputeCapabilityMinor);
    get(&multiprocessors, cudaDevAttrMultiProcessorCount);
    get(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    if (error != cudaSuccess) {
        cudaGetLastError();
        throw LaunchError(std::string("no usable CUDA device: ") + cudaGetErrorString(error));
    }
    return {10 * major + minor, multiprocessors, shared};
}

}  // namespace din_kernels::cuda
