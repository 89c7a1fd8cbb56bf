// sparse_update of din_kernels._cpu.
#include "../sparse_update.h"

#include "bindings.h"

namespace din_kernels::python {

void bind_sparse_update(py::module_& m) {
    m.def(
        "sparse_update",
        [](const py::dict& call, int threads) {
            const auto tables = read_tables<SparseUpdate>(call);
            py::gil_scoped_release release;
            for (const SparseUpdate& table : tables) sparse_update(table, threads);
        },
        R"(Updates in place, table by table, the rows of weights and states that appear in ids.

An array is (address, dtype, shape), C-contiguous. `call` holds lists with an entry per table:
    weights [V, D], grads [N, D]: float32, float64, bfloat16 or float16; V and N below 2^32
    states: those of the rule, table by table, of float64 or else float32: momentum's or Adagrad's [V, D], row-wise
        Adagrad's [V], Adam's two [V, D]
    ids [N] of int32 or int64, within 0 .. V; a row of padding_idx (-1: none) stays
    counts [V] of int32, int64, float32 or float64, or None: no regularization
    lr, step, beta1, beta2, eps, coeff, maximize, decoupled
and rule: sgd, momentum, nesterov, adagrad, rowwise_adagrad or adam; formulas in din_kernels/sparse_update.h.
    threads: at most so many OpenMP threads; the result does not depend on it)");
    m.def(
        "states_per_table",
        [] {
            py::dict found;
            for (const auto& [name, rule] : kUpdateRules) found[name] = states_per_table(rule);
            return found;
        },
        "States that every rule keeps per table.");
}

}  // namespace din_kernels::python
