// mba_penalty of din_kernels._cuda.
#include "../mba_penalty.h"

#include "bindings.h"
#include "din_kernels/cuda/mba_penalty.h"

namespace din_kernels::python {
namespace {

cuda::MbaPenalty call_of(const py::dict& call, const py::dict& result) {
    cuda::MbaPenalty penalty{};
    read_call(call, penalty);
    penalty.unique = Fields(result).address<int64_t>("unique");
    penalty.unique_count = Fields(result).address<int64_t>("unique_count");
    return penalty;
}

}  // namespace

void bind_mba_penalty(py::module_& m) {
    m.def("mba_penalty_workspace", cuda::mba_penalty_workspace, py::arg("rows"), py::arg("entries"),
          "Bytes of scratch memory that mba_penalty_forward needs.");
    m.def(
        "mba_penalty_forward",
        [](const py::dict& call, const py::dict& result, const py::dict& launch, std::uintptr_t stream) {
            cuda::MbaPenalty penalty = call_of(call, result);
            penalty.penalty = Fields(result).address<float>("penalty");
            penalty.workspace = Fields(launch).address<void>("workspace");
            py::gil_scoped_release release;
            cuda::mba_penalty_forward(penalty, stream_at(stream));
        },
        R"(Writes `result`: penalty [1] of float32, unique [N] of int64, the ids but padding_idx in ascending order and -1
behind them, and their number, unique_count [1] of int64.

The call is as for din_kernels._cpu, of float32, bfloat16 or float16. launch holds workspace.)");
    m.def(
        "mba_penalty_backward",
        [](const py::dict& call, const py::dict& result, const py::dict& grads, const py::dict& gradients,
           std::uintptr_t stream) {
            cuda::MbaPenalty penalty = call_of(call, result);
            penalty.grad = Fields(grads).address<const float>("penalty");
            const Array out = Fields(gradients).array("weight");
            needs_rank("weight", out, 2);
            penalty.entries = Fields(result).array("unique").size();
            penalty.out = out.data, penalty.out_rows = penalty.dense ? penalty.entries : out.shape[0];
            py::gil_scoped_release release;
            cuda::mba_penalty_backward(penalty, stream_at(stream));
        },
        R"(Writes gradients["weight"], grads["penalty"] [1] of float32 times coeff * w_j / n_j: to row i for the i-th id of
result["unique"] and zeros behind unique_count, or, where the call is not sparse, to row j of [V, D], whose other rows stay.)");
}

}  // namespace din_kernels::python
