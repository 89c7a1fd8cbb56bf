// dice of din_kernels._cuda.
#include "../dice.h"

#include "bindings.h"
#include "din_kernels/cuda/dice.h"

namespace din_kernels::python {

void bind_dice(py::module_& m) {
    m.def("dice_workspace", cuda::dice_workspace, py::arg("rows"), py::arg("channels"),
          "Bytes of scratch memory that dice_forward and dice_backward need.");
    m.def(
        "dice_forward",
        [](const py::dict& call, const py::dict& result, const py::dict& launch, std::uintptr_t stream) {
            cuda::Dice dice{};
            read_call(call, dice);
            read_statistics(result, dice);
            dice.y = Fields(result).address<void>("y");
            dice.count = Fields(result).address<int64_t>("count");
            dice.workspace = Fields(launch).address<void>("workspace");
            py::gil_scoped_release release;
            cuda::dice_forward(dice, stream_at(stream));
        },
        R"(Writes y [N, C] and count [1] of int64, the valid rows; in training also the batch's mean and var [C], which are
read otherwise.

The call is as for din_kernels._cpu, of float32, bfloat16 or float16; numbers per channel are float32. launch holds
workspace.)");
    m.def(
        "dice_backward",
        [](const py::dict& call, const py::dict& saved, const py::dict& grads, const py::dict& gradients,
           const py::dict& launch, std::uintptr_t stream) {
            cuda::Dice dice{};
            read_call(call, dice);
            read_statistics(saved, dice);
            read_backward(grads, gradients, dice);
            dice.count = Fields(launch).address<int64_t>("count");
            dice.workspace = Fields(launch).address<void>("workspace");
            py::gil_scoped_release release;
            cuda::dice_backward(dice, stream_at(stream));
        },
        "Writes `gradients`, x [N, C], alpha, weight and bias [C], given grads['y']; launch holds scratch: count [1] "
        "of int64, workspace.");
}

}  // namespace din_kernels::python
