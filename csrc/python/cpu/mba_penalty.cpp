// mba_penalty of din_kernels._cpu.
#include "din_kernels/mba_penalty.h"

#include <string>

#include "../table_arrays.h"
#include "bindings.h"

namespace din_kernels::python {

void bind_mba_penalty(py::module_& m) {
    m.def(
        "mba_penalty_forward",
        [](const std::string& dtype, int64_t rows, int64_t dim, int64_t entries, Address weight, Address ids,
           const std::string& id_type, int64_t largest, Address counts, const std::string& count_type, double coeff,
           int64_t padding_idx, Address unique, int threads) {
            const Ids id_array = ids_at(ids, id_type);
            const Counts count_array = counts_at(counts, count_type);
            py::gil_scoped_release release;
            return with_dtype(dtype, [&](auto zero) {
                using S = decltype(zero);
                const MbaPenaltyArgs<S> args{rows,    dim,         entries, at<const S>(weight), id_array,
                                             largest, count_array, coeff,   padding_idx};
                return mba_penalty_forward(args, at<int64_t>(unique), threads);
            });
        },
        R"((coeff / 2) * sum over the unique ids j but padding_idx (-1: none) of ||w_j||^2 / n_j, as a float.

Arrays are addresses, C-contiguous: weight [V, D] of dtype (float32, float64, bfloat16, float16), ids [N] of id_type int32 or int64
within 0 .. largest, which is below V, counts [V] of count_type int32, int64, float32 or float64. V = rows and
N = entries are below 2^32. Writes unique [N] of int64: those ids in ascending order, then -1.)");
    m.def(
        "mba_penalty_backward",
        [](const std::string& dtype, int64_t rows, int64_t dim, int64_t entries, Address weight, Address unique,
           int64_t count, Address counts, const std::string& count_type, double coeff, double grad, bool dense,
           Address out, int threads) {
            const Counts count_array = counts_at(counts, count_type);
            py::gil_scoped_release release;
            with_dtype(dtype, [&](auto zero) {
                using S = decltype(zero);
                const MbaPenaltyArgs<S> args{rows, dim, entries, at<const S>(weight), Ids{}, 0, count_array, coeff, -1};
                mba_penalty_backward(args, at<const int64_t>(unique), count, grad, dense, at<S>(out), threads);
            });
        },
        R"(Writes grad * coeff * w_j / n_j for the first `count` ids j of unique: to row i of out [count, D], or (dense)
to row j of out [V, D], whose other rows stay.)");
}

}  // namespace din_kernels::python
