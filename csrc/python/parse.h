// Addresses and names as arguments, so that any owner of memory (torch, NumPy) can call.
#pragma once

#include <pybind11/pybind11.h>

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

}  // namespace din_kernels::python
