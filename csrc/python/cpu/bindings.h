// din_kernels._cpu takes addresses and sizes, so that any owner of memory (torch, NumPy) can call. Callers check
// shapes.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

namespace din_kernels::python {

namespace py = pybind11;
using Address = std::uintptr_t;  // 0 where an optional array is left out
using Addresses = std::vector<Address>;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// One per op, each in the file of the op's name.
void bind_local_activation(py::module_& m);

}  // namespace din_kernels::python
