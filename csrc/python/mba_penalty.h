// The call of mba_penalty: entries are named as in din_kernels/backends/calls.py.
#pragma once

#include "call.h"
#include "din_kernels/mba_penalty.h"

namespace din_kernels::python {

inline void read_call(const py::dict& described, MbaPenalty& out) {
    const Fields call(described);
    const Array weight = call.array("weight"), ids = call.array("ids");
    needs_rank("weight", weight, 2);
    out.dtype = dtype_of("weight", weight.dtype), out.weight = weight.data;
    out.rows = weight.shape[0], out.dim = weight.shape[1], out.entries = ids.size();
    out.ids = ids_of("ids", ids), out.counts = counts_of("counts", call.array("counts"));
    out.coeff = call.get<double>("coeff"), out.padding_idx = call.get<int64_t>("padding_idx");
    out.dense = !call.get<bool>("sparse");
}

}  // namespace din_kernels::python
