// din_kernels._cpu takes addresses and sizes. Callers check shapes.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../parse.h"

namespace din_kernels::python {

// One per op, each in the file of the op's name.
void bind_dice(py::module_& m);
void bind_local_activation(py::module_& m);
void bind_mba_penalty(py::module_& m);
void bind_sparse_update(py::module_& m);

}  // namespace din_kernels::python
