// local_activation of din_kernels._cpu.
#include "../local_activation.h"

#include "bindings.h"

namespace din_kernels::python {
namespace {

// The packing reads weights, biases and parameters as the arithmetic type.
void needs_arithmetic_type(const LocalActivation& call) {
    const DType needed = call.dtype == DType::kDouble ? DType::kDouble : DType::kFloat;
    const auto check = [&](const char* name, const TypedArray& array) {
        if (array.data && array.dtype != needed)
            throw std::invalid_argument(std::string(name) + " must be of " +
                                        (needed == DType::kDouble ? "float64" : "float32") +
                                        ", the type that kernels compute in");
    };
    for (int l = 0; l <= call.hidden; ++l) {
        check("weights", call.layers[l].weight), check("biases", call.layers[l].bias);
        for (const TypedArray& param : call.layers[l].params) check("params", param);
    }
}

LocalActivation call_of(const py::dict& call, const py::dict& result) {
    LocalActivation unit{};
    read_call(call, unit);
    read_result(result, unit);
    needs_arithmetic_type(unit);
    return unit;
}

}  // namespace

void bind_local_activation(py::module_& m) {
    m.def(
        "local_activation_forward",
        [](const py::dict& call, const py::dict& result, int threads) {
            const LocalActivation unit = call_of(call, result);
            py::gil_scoped_release release;
            local_activation_forward(unit, threads);
        },
        R"(Writes pooled [Q, D], logsumexp [Q] (softmax), statistics (dice_training) and pair_weights, which must hold zeros.

An array is (address, dtype, shape), C-contiguous; None is one left out. T is float64 where the query is, else float32.
    call: the fields of LocalActivationCall in din_kernels/backends/calls.py:
        query_tables, history_tables: lists of [V_k, D_k] of float32, float64, bfloat16 or float16, all of one dtype;
        query_ids [Q], history_ids [M]: lists as long, of int32 or int64, or empty: row n is row n of the one table
        begin, length [U] int64: history u is positions begin[u] .. begin[u] + length[u] of the history, or of row_index
        row_index int64, row_mask [M] bool, query_to_user [Q] int64, pair_begin [Q] int64, or None each
        weights [out, in], biases [out] of the hidden layers and the output, params of the hidden ones, of T; eps
        total_pairs, dice_training, features, activation, normalize, scale
    result: pooled, pair_weights [total_pairs], statistics [2, sum of hidden widths] of T; logsumexp of float64
    threads: at most so many OpenMP threads; the result does not depend on it)");
    m.def(
        "local_activation_backward",
        [](const py::dict& call, const py::dict& result, const py::dict& grads, const py::dict& gradients,
           int threads) {
            LocalActivation unit = call_of(call, result);
            read_backward(grads, gradients, unit);
            py::gil_scoped_release release;
            local_activation_backward(unit, threads);
        },
        R"(Writes the gradients of a forward call, given its `call` and `result`.

    grads: those of pooled and pair_weights (or None), of T
    gradients: query (of T) and history (of the history's dtype), one array per table, or empty lists where not needed;
        weights, biases and params, like those of the call)");
    m.def(
        "params_per_layer",
        [] {
            py::dict found;
            for (const auto& [name, activation] : kActivations)
                found[name] = py::make_tuple(params_per_layer(activation, false), params_per_layer(activation, true));
            return found;
        },
        "Parameters of every activation per hidden layer: in evaluation, and where Dice takes the batch's statistics.");
}

}  // namespace din_kernels::python
