// What the CUDA runtime sees on this machine, as plain C++. Nothing here throws where no GPU or no driver is.
#pragma once

#include <string>
#include <vector>

namespace din_kernels::cuda {

struct Device {
    std::string name;
    int major, minor;  // compute capability
    int multiprocessors;
    size_t memory_bytes;
};

struct DeviceInfo {
    int driver_version, runtime_version;  // 1000 major + 10 minor; driver 0 where none is installed
    std::string unavailable;              // why `devices` is empty, else ""
    std::vector<Device> devices;
};

DeviceInfo device_info();

}  // namespace din_kernels::cuda
