// din_kernels._cpu takes addresses and sizes, so that any owner of memory (torch, NumPy) can call. Callers check
// shapes.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace din_kernels::python {

namespace py = pybind11;
using Address = std::uintptr_t;  // 0 where an optional array is left out
using Addresses = std::vector<Address>;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

template <typename Enum>
Enum parse(const char* name, const std::string& value, std::initializer_list<std::pair<const char*, Enum>> known) {
    std::string names;
    for (const auto& [text, result] : known) {
        if (value == text) return result;
        names += std::string(names.empty() ? "" : ", ") + text;
    }
    throw std::invalid_argument(std::string(name) + " must be one of " + names + ", got " + value);
}

// One per op, each in the file of the op's name.
void bind_dice(py::module_& m);
void bind_local_activation(py::module_& m);
void bind_mba_penalty(py::module_& m);
void bind_sparse_update(py::module_& m);

}  // namespace din_kernels::python
