// mba_penalty of din_kernels._cuda.
#include "din_kernels/cuda/mba_penalty.h"

#include "../table_arrays.h"
#include "bindings.h"

namespace din_kernels::python {

void bind_mba_penalty(py::module_& m) {
    m.def("mba_penalty_workspace", cuda::mba_penalty_workspace, py::arg("rows"), py::arg("entries"),
          "Bytes of scratch memory that mba_penalty_forward needs.");
    m.def(
        "mba_penalty_forward",
        [](const std::string& dtype, int64_t rows, int64_t dim, int64_t entries, Address weight, Address ids,
           const std::string& id_type, Address counts, const std::string& count_type, double coeff, int64_t padding_idx,
           Address unique, Address unique_count, Address penalty, Address workspace, Address stream) {
            const cuda::MbaPenalty call{dtype_of(dtype),
                                        rows,
                                        dim,
                                        entries,
                                        at<const void>(weight),
                                        ids_at(ids, id_type),
                                        counts_at(counts, count_type),
                                        coeff,
                                        padding_idx,
                                        at<int64_t>(unique),
                                        at<int64_t>(unique_count),
                                        at<float>(penalty),
                                        at<void>(workspace)};
            py::gil_scoped_release release;
            cuda::mba_penalty_forward(call, stream_at(stream));
        },
        R"((coeff / 2) * sum over the unique ids j but padding_idx (-1: none) of ||w_j||^2 / n_j to penalty [1] of float32.

Arrays are addresses on the device, C-contiguous: weight [V, D] of dtype float32, bfloat16 or float16, ids [N] of
id_type int32 or int64, counts [V] of count_type int32, int64, float32 or float64. Writes unique [N] of int64: those
ids in ascending order, then -1, and their number to unique_count [1] of int64.)");
    m.def(
        "mba_penalty_backward",
        [](const std::string& dtype, int64_t rows, int64_t dim, int64_t entries, Address weight, Address unique,
           Address unique_count, Address counts, const std::string& count_type, double coeff, Address grad, bool dense,
           int64_t out_rows, Address out, Address stream) {
            cuda::MbaPenalty call{};
            call.dtype = dtype_of(dtype), call.rows = rows, call.dim = dim, call.entries = entries;
            call.weight = at<const void>(weight), call.counts = counts_at(counts, count_type), call.coeff = coeff;
            call.unique = at<int64_t>(unique), call.unique_count = at<int64_t>(unique_count);
            py::gil_scoped_release release;
            cuda::mba_penalty_backward(call, at<const float>(grad), dense, out_rows, at<void>(out), stream_at(stream));
        },
        R"(Writes grad * coeff * w_j / n_j, grad [1] of float32: to row i of out [out_rows, D] for unique[i], zeros behind
unique_count, or (dense) to row j of out [V, D], whose other rows stay; out_rows is N then.)");
}

}  // namespace din_kernels::python
