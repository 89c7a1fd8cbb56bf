// din_kernels._cpu takes descriptions of calls (../call.h). Callers check shapes.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace din_kernels::python {

// One per op, each in the file of the op's name.
void bind_dice(pybind11::module_& m);
void bind_local_activation(pybind11::module_& m);
void bind_mba_penalty(pybind11::module_& m);
void bind_sparse_update(pybind11::module_& m);

}  // namespace din_kernels::python
