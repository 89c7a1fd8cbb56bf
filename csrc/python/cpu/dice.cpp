// dice of din_kernels._cpu.
#include "din_kernels/dice.h"

#include <string>

#include "../table_arrays.h"
#include "bindings.h"

namespace din_kernels::python {
namespace {

template <typename S>
DiceArgs<S> arguments(int64_t rows, int64_t channels, Address x, Address mask, Address alpha, Address weight,
                      Address bias, Address mean, Address var, double eps, bool training) {
    return {rows,
            channels,
            at<const S>(x),
            at<const bool>(mask),
            at<const Wide<S>>(alpha),
            at<const Wide<S>>(weight),
            at<const Wide<S>>(bias),
            at<Wide<S>>(mean),
            at<Wide<S>>(var),
            eps,
            training};
}

}  // namespace

void bind_dice(py::module_& m) {
    m.def(
        "dice_forward",
        [](const std::string& dtype, int64_t rows, int64_t channels, Address x, Address mask, Address alpha,
           Address weight, Address bias, Address mean, Address var, double eps, bool training, Address y, int threads) {
            py::gil_scoped_release release;
            return with_dtype(dtype, [&](auto zero) {
                using S = decltype(zero);
                return dice_forward(
                    arguments<S>(rows, channels, x, mask, alpha, weight, bias, mean, var, eps, training), at<S>(y),
                    threads);
            });
        },
        R"(y = s (alpha + (1 - alpha) sigmoid((s - mean) / sqrt(var + eps) * weight + bias)); returns the valid rows' number.

Arrays are addresses, C-contiguous; 0 stands for an optional one.
    dtype: float32, float64, bfloat16 or float16, of x [N, C] and y [N, C]; the others are float64 or float32
    mask [N] of bool, or 0: rows that are false give 0 and count in no statistic
    alpha, weight or 0, bias or 0: [C]
    mean, var: [C], written in training (batch statistics, biased), else read
    threads: at most so many OpenMP threads; the result does not depend on it)");
    m.def(
        "dice_backward",
        [](const std::string& dtype, int64_t rows, int64_t channels, Address x, Address mask, Address alpha,
           Address weight, Address bias, Address mean, Address var, double eps, bool training, Address grad_y,
           Address grad_x, Address grad_alpha, Address grad_weight, Address grad_bias, int threads) {
            py::gil_scoped_release release;
            with_dtype(dtype, [&](auto zero) {
                using S = decltype(zero);
                dice_backward(arguments<S>(rows, channels, x, mask, alpha, weight, bias, mean, var, eps, training),
                              DiceGrads<S>{at<const S>(grad_y), at<S>(grad_x), at<Wide<S>>(grad_alpha),
                                           at<Wide<S>>(grad_weight), at<Wide<S>>(grad_bias)},
                              threads);
            });
        },
        R"(Writes the gradients of a forward call with the same arguments and its mean and var, given grad_y.

grad_weight and grad_bias may be 0.)");
}

}  // namespace din_kernels::python
