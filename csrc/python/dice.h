// The call of dice: entries are named as in din_kernels/backends/calls.py.
#pragma once

#include "call.h"
#include "din_kernels/dice.h"

namespace din_kernels::python {

inline void read_call(const py::dict& described, Dice& out) {
    const Fields call(described);
    const Array x = call.array("x");
    needs_rank("x", x, 2);
    out.dtype = dtype_of("x", x.dtype), out.rows = x.shape[0], out.channels = x.shape[1], out.x = x.data;
    out.mask = call.address<const bool>("mask");
    out.alpha = call.address<const void>("alpha"), out.weight = call.address<const void>("weight");
    out.bias = call.address<const void>("bias");
    out.eps = call.get<double>("eps"), out.training = call.get<bool>("training");
}

// The statistics of a result: in a training forward written, else read in place of the call's.
inline void read_statistics(const py::dict& described, Dice& out) {
    const Fields result(described);
    out.mean = result.address<void>("mean"), out.var = result.address<void>("var");
}

// The gradient of y, and room for those of x, alpha, weight and bias, the last two None where the call has none.
inline void read_backward(const py::dict& given, const py::dict& wanted, Dice& out) {
    const Fields grads(given), gradients(wanted);
    out.grad_y = grads.address<const void>("y"), out.grad_x = gradients.address<void>("x");
    out.grad_alpha = gradients.address<void>("alpha");
    out.grad_weight = gradients.address<void>("weight"), out.grad_bias = gradients.address<void>("bias");
}

}  // namespace din_kernels::python
