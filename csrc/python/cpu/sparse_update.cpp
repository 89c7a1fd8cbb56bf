// sparse_update of din_kernels._cpu.
#include "din_kernels/sparse_update.h"

#include <string>

#include "../table_arrays.h"
#include "bindings.h"

namespace din_kernels::python {

void bind_sparse_update(py::module_& m) {
    m.def(
        "sparse_update",
        [](const std::string& dtype, int64_t rows, int64_t dim, int64_t entries, Address weight, Address first,
           Address second, Address ids, const std::string& id_type, int64_t largest, Address grads, Address counts,
           const std::string& count_type, int64_t padding_idx, const std::string& rule, double lr, double step,
           double beta1, double beta2, double eps, double coeff, bool maximize, bool decoupled, int threads) {
            const Ids id_array = ids_at(ids, id_type);
            const Counts count_array = counts_at(counts, count_type);
            const UpdateRule update = update_rule(rule);
            py::gil_scoped_release release;
            with_dtype(dtype, [&](auto zero) {
                using S = decltype(zero);
                const SparseUpdateArgs<S> args{rows,
                                               dim,
                                               entries,
                                               at<S>(weight),
                                               at<Wide<S>>(first),
                                               at<Wide<S>>(second),
                                               id_array,
                                               largest,
                                               at<const S>(grads),
                                               count_array,
                                               padding_idx,
                                               update,
                                               lr,
                                               step,
                                               beta1,
                                               beta2,
                                               eps,
                                               coeff,
                                               maximize,
                                               decoupled};
                sparse_update(args, threads);
            });
        },
        R"(Updates in place the rows of weight [V, D] and of its states that appear in ids [N], gradients [N, D].

Arrays are addresses, C-contiguous; 0 stands for an optional one.
    dtype: float32, float64, bfloat16 or float16, of weight and gradients; states are float64 or float32
    rows, dim, entries: V, D, N; V and N below 2^32
    first, second: states of the rule: momentum's or Adagrad's [V, D], row-wise Adagrad's [V], Adam's two [V, D]
    ids [N] of id_type int32 or int64, within 0 .. largest, which is below V; a row of padding_idx (-1: none) stays
    counts [V] of count_type int32, int64, float32 or float64, or 0: no regularization
    rule: sgd, momentum, nesterov, adagrad, rowwise_adagrad or adam; formulas in din_kernels/sparse_update.h
    threads: at most so many OpenMP threads; the result does not depend on it)");
}

}  // namespace din_kernels::python
