// dice of din_kernels._cpu.
#include "../dice.h"

#include "bindings.h"

namespace din_kernels::python {

void bind_dice(py::module_& m) {
    m.def(
        "dice_forward",
        [](const py::dict& call, const py::dict& result, int threads) {
            Dice dice{};
            read_call(call, dice);
            read_statistics(result, dice);
            dice.y = Fields(result).address<void>("y");
            auto& count = Fields(result).element<int64_t>("count");
            py::gil_scoped_release release;
            count = dice_forward(dice, threads);
        },
        R"(y = s (alpha + (1 - alpha) sigmoid((s - mean) / sqrt(var + eps) * weight + bias)), and the number of valid
rows.

An array is (address, dtype, shape), C-contiguous; None is one left out.
    call: x [N, C] of float32, float64, bfloat16 or float16; alpha, weight or None, bias or None [C] of float64 or else
        float32; mask [N] of bool or None: rows that are false give 0 and enter no statistic; training, eps
    result: y [N, C]; mean, var [C], written in training (batch statistics, biased), else read; count [1] of int64, written
    threads: at most so many OpenMP threads; the result does not depend on it)");
    m.def(
        "dice_backward",
        [](const py::dict& call, const py::dict& saved, const py::dict& grads, const py::dict& gradients, int threads) {
            Dice dice{};
            read_call(call, dice);
            read_statistics(saved, dice);
            read_backward(grads, gradients, dice);
            py::gil_scoped_release release;
            dice_backward(dice, threads);
        },
        R"(Writes `gradients`, x, alpha, weight and bias, of a forward call, given saved["mean"], saved["var"] and
grads["y"].

weight and bias may be None.)");
}

}  // namespace din_kernels::python
