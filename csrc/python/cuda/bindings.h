// din_kernels._cuda takes descriptions of calls (../call.h) whose addresses are of device memory, and a stream. Callers
// check shapes and hold the device.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "din_kernels/cuda.h"

namespace din_kernels::python {

inline cuda::Stream stream_at(std::uintptr_t address) { return reinterpret_cast<cuda::Stream>(address); }

// One per op, each in the file of the op's name.
void bind_dice(pybind11::module_& m);
void bind_local_activation(pybind11::module_& m);
void bind_mba_penalty(pybind11::module_& m);
void bind_sparse_update(pybind11::module_& m);

}  // namespace din_kernels::python
