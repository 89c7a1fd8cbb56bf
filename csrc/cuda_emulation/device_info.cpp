// The emulated device, as the CUDA runtime would describe it.
#include "din_kernels/device_info.h"

#include "din_kernels/cuda.h"
#include "machine.h"

namespace din_kernels::cuda {

DeviceInfo device_info() {
    const emulation::Device& device = emulation::device();
    return {0,
            0,
            "",
            {{"emulation on the CPU", device.architecture / 10, device.architecture % 10, device.multiprocessors, 0}}};
}

DeviceLimits device_limits() {
    const emulation::Device& device = emulation::device();
    return {device.architecture, device.multiprocessors, int64_t(device.shared_per_block)};
}

const char* built_architectures() { return "90"; }

}  // namespace din_kernels::cuda
