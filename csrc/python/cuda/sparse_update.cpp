// sparse_update of din_kernels._cuda.
#include "../sparse_update.h"

#include "bindings.h"
#include "din_kernels/cuda/sparse_update.h"

namespace din_kernels::python {

void bind_sparse_update(py::module_& m) {
    m.def("sparse_update_workspace", cuda::sparse_update_workspace, py::arg("rows"), py::arg("dim"), py::arg("entries"),
          "Bytes of scratch memory that sparse_update needs for a table.");
    m.def(
        "sparse_update",
        [](const py::dict& call, const py::dict& launch, std::uintptr_t stream) {
            auto tables = read_tables<cuda::SparseUpdate>(call);
            const Fields how(launch);
            const bool deterministic = how.get<bool>("deterministic");
            void* const workspace = how.address<void>("workspace");
            py::gil_scoped_release release;
            for (cuda::SparseUpdate& table : tables) {
                table.deterministic = deterministic, table.workspace = workspace;
                if (table.entries > 0 && table.rows * table.dim > 0) cuda::sparse_update(table, stream_at(stream));
            }
        },
        R"(Updates in place, table by table, the rows of weights and states that appear in ids.

The call is as for din_kernels._cpu, of float32, bfloat16 or float16; states are float32. launch holds
    deterministic: gradients of equal ids are added in the order of their positions
    workspace: as much as the table needs that needs most)");
}

}  // namespace din_kernels::python
