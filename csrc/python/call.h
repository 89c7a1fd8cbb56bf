// From Python's description of a call to the C++ one, for both modules. Callers check shapes; what is checked here
// keeps a wrong description from becoming a wrong address.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "din_kernels/arrays.h"

namespace din_kernels::python {

namespace py = pybind11;

template <typename Enum, size_t kValues>
Enum parse(const char* name, std::string_view value, const Named<Enum> (&known)[kValues]) {
    for (const auto& [text, result] : known)
        if (value == text) return result;
    std::string names;
    for (const auto& [text, result] : known) names += std::string(names.empty() ? "" : ", ") + text;
    throw std::invalid_argument(std::string(name) + " must be one of " + names + ", got " + std::string(value));
}

inline std::string_view text_of(const char* name, PyObject* value) {
    Py_ssize_t size = 0;
    const char* const text = PyUnicode_Check(value) ? PyUnicode_AsUTF8AndSize(value, &size) : nullptr;
    if (!text) throw std::invalid_argument(std::string(name) + " must be text, got " + Py_TYPE(value)->tp_name);
    return {text, size_t(size)};
}

// An array as (address, dtype, shape), so that any owner of memory (torch, NumPy) can call; None is one left out. The
// text belongs to the description.
struct Array {
    static constexpr int kMaxRank = 4;
    void* data = nullptr;
    std::string_view dtype;
    int64_t shape[kMaxRank];
    int rank = 0;
    bool given = false;

    int64_t size() const {
        int64_t product = 1;
        for (int d = 0; d < rank; ++d) product *= shape[d];
        return product;
    }
};

inline Array array_of(const char* name, PyObject* value) {
    if (value == Py_None) return {};
    PyObject* const shape = PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 3 ? PyTuple_GET_ITEM(value, 2) : nullptr;
    if (!shape || !PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) > Array::kMaxRank)
        throw std::invalid_argument(std::string(name) + " must be (address, dtype, shape) or None");
    Array array;
    array.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(value, 0));
    array.dtype = text_of(name, PyTuple_GET_ITEM(value, 1));
    array.rank = int(PyTuple_GET_SIZE(shape));
    for (int d = 0; d < array.rank; ++d) array.shape[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, d));
    if (PyErr_Occurred()) throw py::error_already_set();
    array.given = true;
    return array;
}

template <typename T>
constexpr const char* kNameOf = nullptr;
template <>
constexpr const char* kNameOf<bool> = "bool";
template <>
constexpr const char* kNameOf<int64_t> = "int64";
template <>
constexpr const char* kNameOf<float> = "float32";
template <>
constexpr const char* kNameOf<double> = "float64";

inline DType dtype_of(const char* name, std::string_view dtype) {
    return parse<DType>(name, dtype,
                        {{"float32", DType::kFloat},
                         {"float64", DType::kDouble},
                         {"bfloat16", DType::kBf16},
                         {"float16", DType::kFp16}});
}

inline Ids ids_of(const char* name, const Array& array) {
    if (!array.given) return {};
    return {array.data, parse<bool>(name, array.dtype, {{"int32", false}, {"int64", true}})};
}

inline Counts counts_of(const char* name, const Array& array) {
    if (!array.given) return {};
    return {array.data, parse<CountType>(name, array.dtype,
                                         {{"int32", CountType::kInt32},
                                          {"int64", CountType::kInt64},
                                          {"float32", CountType::kFloat},
                                          {"float64", CountType::kDouble}})};
}

// The named entries of a dict.
class Fields {
 public:
    explicit Fields(const py::dict& dict) : dict_(dict) {}

    template <typename V>
    V get(const char* name) const {
        return at(name).cast<V>();
    }
    std::string_view text(const char* name) const { return text_of(name, at(name).ptr()); }
    Array array(const char* name) const { return array_of(name, at(name).ptr()); }
    std::vector<Array> arrays(const char* name) const {
        const auto list = at(name).cast<py::list>();
        std::vector<Array> found;
        found.reserve(list.size());
        for (const py::handle each : list) found.push_back(array_of(name, each.ptr()));
        return found;
    }
    // Address of an array whose elements are T; for void of any type. Null where it is left out.
    template <typename T>
    T* address(const char* name) const {
        const Array found = array(name);
        if constexpr (!std::is_void_v<T>)
            if (found.given && found.dtype != kNameOf<std::remove_const_t<T>>)
                throw std::invalid_argument(std::string(name) + " must be of " + kNameOf<std::remove_const_t<T>> +
                                            ", got " + std::string(found.dtype));
        return static_cast<T*>(found.data);
    }

    // The one element of an array that the module itself reads or writes.
    template <typename T>
    T& element(const char* name) const {
        T* const found = address<T>(name);
        if (!found) throw std::invalid_argument(std::string(name) + " must be an array of one element, got none");
        return *found;
    }

 private:
    const py::dict& dict_;

    py::handle at(const char* name) const {
        PyObject* const found = PyDict_GetItemString(dict_.ptr(), name);
        if (!found) throw std::invalid_argument(std::string("the call must hold ") + name);
        return found;
    }
};

inline void needs_rank(const char* name, const Array& array, int rank) {
    if (array.rank != rank)
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(rank) + " dimensions, got " +
                                    std::to_string(array.rank));
}

}  // namespace din_kernels::python
