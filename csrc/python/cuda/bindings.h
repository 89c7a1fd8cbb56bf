// din_kernels._cuda takes addresses of device memory, sizes and a stream. Callers check shapes and hold the device.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "../parse.h"
#include "din_kernels/cuda.h"

namespace din_kernels::python {

inline cuda::DType dtype_of(const std::string& name) {
    return parse<cuda::DType>(
        "dtype", name,
        {{"float32", cuda::DType::kFloat}, {"bfloat16", cuda::DType::kBf16}, {"float16", cuda::DType::kFp16}});
}

inline cuda::Stream stream_at(Address address) { return reinterpret_cast<cuda::Stream>(address); }

// One per op, each in the file of the op's name.
void bind_dice(py::module_& m);
void bind_local_activation(py::module_& m);
void bind_mba_penalty(py::module_& m);
void bind_sparse_update(py::module_& m);

}  // namespace din_kernels::python
