// din_kernels._cuda: imports on every machine, with or without a GPU or its driver. The same file makes
// din_kernels._cuda_emulated, whose kernels run on the CPU.
#include "bindings.h"
#include "din_kernels/device_info.h"

#ifdef DIN_KERNELS_EMULATE
#include "../../cuda_emulation/machine.h"
#endif

namespace py = pybind11;
using din_kernels::cuda::DeviceInfo;
using namespace din_kernels::python;

PYBIND11_MODULE(DIN_KERNELS_MODULE, m) {
    bind_dice(m);
    bind_local_activation(m);
    bind_mba_penalty(m);
    bind_sparse_update(m);
#ifdef DIN_KERNELS_EMULATE
    m.def(
        "set_device",
        [](int multiprocessors, size_t shared_per_block, bool reverse_blocks, int architecture) {
            din_kernels::emulation::device() = {multiprocessors, shared_per_block, reverse_blocks, architecture};
        },
        py::arg("multiprocessors") = 3, py::arg("shared_per_block") = 227 * 1024, py::arg("reverse_blocks") = false,
        py::arg("architecture") = 90,
        "The emulated device: its size, its limit, the order in which blocks run, and what it is, of which 90 alone "
        "runs.");
#endif
    m.def(
        "device_count", [] { return din_kernels::cuda::device_info().devices.size(); },
        "Number of GPUs that the CUDA runtime sees; 0 with the reason in device_info()['unavailable'].");
    m.def(
        "device_info",
        [] {
            const DeviceInfo info = din_kernels::cuda::device_info();
            py::list devices;
            for (const auto& device : info.devices)
                devices.append(py::dict(py::arg("name") = device.name,
                                        py::arg("capability") = py::make_tuple(device.major, device.minor),
                                        py::arg("multiprocessors") = device.multiprocessors,
                                        py::arg("memory_bytes") = device.memory_bytes));
            return py::dict(py::arg("driver_version") = info.driver_version,
                            py::arg("runtime_version") = info.runtime_version,
                            py::arg("unavailable") = info.unavailable, py::arg("devices") = devices);
        },
        "Driver and runtime version (1000 major + 10 minor), the GPUs, and why there is none ('' where there is one).");
}
