// din_kernels._cuda: imports on every machine, with or without a GPU or its driver.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "din_kernels/device_info.h"

namespace py = pybind11;
using din_kernels::cuda::DeviceInfo;

PYBIND11_MODULE(_cuda, m) {
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
