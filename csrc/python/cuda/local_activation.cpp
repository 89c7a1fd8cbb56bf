// local_activation of din_kernels._cuda.
#include "../local_activation.h"

#include "bindings.h"
#include "din_kernels/cuda/local_activation.h"

namespace din_kernels::python {
namespace {

// `launch`: how a call runs, beside what it is.
cuda::LocalActivation call_of(const py::dict& described, const py::dict& launch) {
    cuda::LocalActivation call{};
    read_call(described, call);
    if (call.dtype == DType::kDouble)
        throw std::invalid_argument("query_tables must be of float32, bfloat16 or float16, got float64");
    const Fields fields(launch);
    call.precision = parse<cuda::Precision>(
        "precision", fields.text("precision"),
        {{"highest", cuda::Precision::kHighest}, {"tensor cores", cuda::Precision::kTensorCores}});
    call.chunk_bytes = fields.get<int64_t>("chunk_bytes");
    return call;
}

int64_t workspace_of(int64_t (*bytes)(const cuda::LocalActivation&), const py::dict& call, const py::dict& launch) {
    return bytes(call_of(call, launch));
}

}  // namespace

void bind_local_activation(py::module_& m) {
    m.def(
        "local_activation_plan",
        [](const py::dict& call, const py::dict& launch, bool backward, int multiprocessors, int64_t shared_per_block) {
            const cuda::DeviceLimits device{0, multiprocessors, shared_per_block};
            const auto plan_of = backward ? cuda::local_activation_backward_plan : cuda::local_activation_forward_plan;
            const cuda::LaunchPlan plan = plan_of(call_of(call, launch), device);
            return py::dict(py::arg("rows") = plan.rows, py::arg("stages") = plan.stages,
                            py::arg("threads") = plan.threads, py::arg("blocks") = plan.blocks,
                            py::arg("shared_bytes") = plan.shared_bytes,
                            py::arg("workspace_bytes") = plan.workspace_bytes,
                            py::arg("gradient_in_shared") = plan.gradient_in_shared, py::arg("folded") = plan.folded,
                            py::arg("chunk") = plan.chunk);
        },
        py::arg("call"), py::arg("launch"), py::arg("backward"), py::arg("multiprocessors"),
        py::arg("shared_per_block"), "How a call would be launched on a device of that size; needs no device.");
    m.def(
        "local_activation_forward_workspace",
        [](const py::dict& call, const py::dict& launch) {
            return workspace_of(cuda::local_activation_forward_workspace, call, launch);
        },
        "Bytes of scratch memory that local_activation_forward needs.");
    m.def(
        "local_activation_backward_workspace",
        [](const py::dict& call, const py::dict& launch) {
            return workspace_of(cuda::local_activation_backward_workspace, call, launch);
        },
        "Bytes of scratch memory that local_activation_backward needs.");
    m.def(
        "local_activation_forward",
        [](const py::dict& described, const py::dict& result, const py::dict& launch, std::uintptr_t stream) {
            cuda::LocalActivation call = call_of(described, launch);
            read_result(result, call);
            call.workspace = Fields(launch).address<void>("workspace");
            py::gil_scoped_release release;
            cuda::local_activation_forward(call, stream_at(stream));
        },
        R"(Pools histories; writes pooled [Q, D], logsumexp [Q] (softmax), pair_weights, which must hold zeros, and statistics.

`call` and `result` are as for din_kernels._cpu, of float32, bfloat16 or float16; weights, biases and params may be of any
of them. `launch` holds precision ("highest" or "tensor cores"), chunk_bytes and workspace.)");
    m.def(
        "local_activation_backward",
        [](const py::dict& described, const py::dict& result, const py::dict& grads, const py::dict& gradients,
           const py::dict& launch, std::uintptr_t stream) {
            cuda::LocalActivation call = call_of(described, launch);
            read_result(result, call);
            read_backward(grads, gradients, call);
            const Array pairs = Fields(launch).array("grad_pairs");
            call.grad_pairs = static_cast<float*>(pairs.data), call.pairs = pairs.given ? pairs.shape[0] : 0;
            call.workspace = Fields(launch).address<void>("workspace");
            py::gil_scoped_release release;
            cuda::local_activation_backward(call, stream_at(stream));
        },
        R"(Writes `gradients` of a forward call, given its results and the gradients of pooled and pair_weights.

Gradients of weights, biases and params are of float32, those of params [H] each, as local_activation.h says. query and
history are lists of one array, all tables side by side, or empty. The history's holds zeros and is of its dtype, or, with
query_to_user, of float32; beside it launch["grad_pairs"] [pairs, D] of float32, or None, takes the gradient of every pair's
row, candidate by candidate, instead.)");
}

}  // namespace din_kernels::python
