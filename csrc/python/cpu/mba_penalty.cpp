// mba_penalty of din_kernels._cpu.
#include "../mba_penalty.h"

#include "bindings.h"

namespace din_kernels::python {

void bind_mba_penalty(py::module_& m) {
    m.def(
        "mba_penalty_forward",
        [](const py::dict& call, const py::dict& result, int threads) {
            MbaPenalty penalty{};
            read_call(call, penalty);
            penalty.unique = Fields(result).address<int64_t>("unique");
            auto& count = Fields(result).element<int64_t>("unique_count");
            py::gil_scoped_release release;
            return mba_penalty_forward(penalty, count, threads);
        },
        R"((coeff / 2) * sum over the unique ids j but padding_idx (-1: none) of ||w_j||^2 / n_j, as a float.

An array is (address, dtype, shape), C-contiguous.
    call: weight [V, D] of float32, float64, bfloat16 or float16; ids [N] of int32 or int64, within 0 .. V; counts [V] of
        int32, int64, float32 or float64; coeff, padding_idx, sparse. V and N are below 2^32
    result, written: unique [N] of int64, those ids in ascending order, then -1; unique_count [1] of int64, their number
    threads: at most so many OpenMP threads; the result does not depend on it)");
    m.def(
        "mba_penalty_backward",
        [](const py::dict& call, const py::dict& result, int64_t count, double grad, const py::dict& gradients,
           int threads) {
            MbaPenalty penalty{};
            read_call(call, penalty);
            penalty.unique = Fields(result).address<int64_t>("unique");
            penalty.out = Fields(gradients).address<void>("weight");
            py::gil_scoped_release release;
            mba_penalty_backward(penalty, count, grad, threads);
        },
        R"(Writes grad * coeff * w_j / n_j for the first `count` ids j of result["unique"] to gradients["weight"]: to row i of
[.., D] for the i-th id, or, where the call is not sparse, to row j of [V, D], whose other rows stay.)");
}

}  // namespace din_kernels::python
