// sparse_update of din_kernels._cuda.
#include "din_kernels/cuda/sparse_update.h"

#include "../table_arrays.h"
#include "bindings.h"

namespace din_kernels::python {

void bind_sparse_update(py::module_& m) {
    m.def("sparse_update_workspace", cuda::sparse_update_workspace, py::arg("rows"), py::arg("dim"), py::arg("entries"),
          "Bytes of scratch memory that sparse_update needs.");
    m.def(
        "sparse_update",
        [](const std::string& dtype, int64_t rows, int64_t dim, int64_t entries, Address weight, Address first,
           Address second, Address ids, const std::string& id_type, Address grads, Address counts,
           const std::string& count_type, int64_t padding_idx, const std::string& rule, float lr, float step,
           float beta1, float beta2, float eps, float coeff, bool maximize, bool decoupled, bool deterministic,
           Address workspace, Address stream) {
            const cuda::SparseUpdate call{dtype_of(dtype),
                                          rows,
                                          dim,
                                          entries,
                                          at<void>(weight),
                                          at<float>(first),
                                          at<float>(second),
                                          ids_at(ids, id_type),
                                          at<const void>(grads),
                                          counts_at(counts, count_type),
                                          padding_idx,
                                          update_rule(rule),
                                          lr,
                                          step,
                                          beta1,
                                          beta2,
                                          eps,
                                          coeff,
                                          maximize,
                                          decoupled,
                                          deterministic,
                                          at<void>(workspace)};
            py::gil_scoped_release release;
            cuda::sparse_update(call, stream_at(stream));
        },
        R"(Updates in place the rows of weight [V, D] and of its states that appear in ids [N], gradients [N, D].

Arrays are addresses on the device, C-contiguous; 0 stands for an optional one.
    dtype: float32, bfloat16 or float16, of weight and gradients; states are float32
    first, second: states of the rule: momentum's or Adagrad's [V, D], row-wise Adagrad's [V], Adam's two [V, D]
    ids [N] of id_type int32 or int64; a row of padding_idx (-1: none) stays
    counts [V] of count_type int32, int64, float32 or float64, or 0: no regularization
    deterministic: gradients of equal ids are added in the order of their positions)");
}

}  // namespace din_kernels::python
