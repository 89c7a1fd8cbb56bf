// The call of sparse_update: entries are named as in din_kernels/backends/calls.py, one per table in each list.
#pragma once

#include "call.h"
#include "din_kernels/sparse_update.h"

namespace din_kernels::python {

// The tables of a call as `Call`, SparseUpdate of the CPU or of CUDA.
template <typename Call>
std::vector<Call> read_tables(const py::dict& described) {
    const Fields call(described);
    const auto rule = parse("rule", call.text("rule"), kUpdateRules);
    const std::vector<Array> weights = call.arrays("weights"), states = call.arrays("states"), ids = call.arrays("ids"),
                             grads = call.arrays("grads"), counts = call.arrays("counts");
    const size_t tables = weights.size(), per_table = size_t(states_per_table(rule));
    const auto needs = [&](const char* name, size_t count, size_t expected) {
        if (count != expected)
            throw std::invalid_argument(std::string(name) + " must hold " + std::to_string(expected) + " entries for " +
                                        std::to_string(tables) + " tables, got " + std::to_string(count));
    };
    const auto numbers = [&](const char* name) {
        auto list = call.get<std::vector<double>>(name);
        needs(name, list.size(), tables);
        return list;
    };
    needs("states", states.size(), tables * per_table), needs("ids", ids.size(), tables);
    needs("grads", grads.size(), tables), needs("counts", counts.size(), tables);
    const auto lr = numbers("lr"), step = numbers("step"), beta1 = numbers("beta1"), beta2 = numbers("beta2"),
               eps = numbers("eps"), coeff = numbers("coeff");
    const auto padding_idx = call.get<std::vector<int64_t>>("padding_idx");
    const auto maximize = call.get<std::vector<bool>>("maximize"), decoupled = call.get<std::vector<bool>>("decoupled");
    needs("padding_idx", padding_idx.size(), tables);
    needs("maximize", maximize.size(), tables), needs("decoupled", decoupled.size(), tables);

    std::vector<Call> found(tables);
    for (size_t t = 0; t < tables; ++t) {
        Call& out = found[t];
        needs_rank("weights", weights[t], 2);
        out.dtype = dtype_of("weights", weights[t].dtype), out.weight = weights[t].data;
        out.rows = weights[t].shape[0], out.dim = weights[t].shape[1], out.entries = ids[t].size();
        if (per_table > 0) out.first = states[t * per_table].data;
        if (per_table > 1) out.second = states[t * per_table + 1].data;
        out.ids = ids_of("ids", ids[t]), out.grads = grads[t].data;
        // Without a coefficient n_j changes nothing and is not read.
        if (coeff[t] != 0) out.counts = counts_of("counts", counts[t]);
        out.padding_idx = padding_idx[t], out.rule = rule;
        out.lr = lr[t], out.step = step[t], out.beta1 = beta1[t], out.beta2 = beta2[t], out.eps = eps[t];
        out.coeff = coeff[t], out.maximize = maximize[t], out.decoupled = decoupled[t];
    }
    return found;
}

}  // namespace din_kernels::python
