#include "din_kernels/device_info.h"

#include <cuda_runtime.h>

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

}  // namespace din_kernels::cuda
