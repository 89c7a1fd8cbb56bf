// dice of din_kernels._cuda.
#include "din_kernels/cuda/dice.h"

#include "bindings.h"

namespace din_kernels::python {

void bind_dice(py::module_& m) {
    m.def("dice_workspace", cuda::dice_workspace, py::arg("rows"), py::arg("channels"),
          "Bytes of scratch memory that dice_forward and dice_backward need.");
    m.def(
        "dice_forward",
        [](const std::string& dtype, int64_t rows, int64_t channels, Address x, Address mask, Address alpha,
           Address weight, Address bias, Address mean, Address var, float eps, bool training, Address y, Address count,
           Address workspace, Address stream) {
            cuda::Dice call{};
            call.dtype = dtype_of(dtype), call.rows = rows, call.channels = channels;
            call.x = at<const void>(x), call.mask = at<const bool>(mask), call.alpha = at<const float>(alpha);
            call.weight = at<const float>(weight), call.bias = at<const float>(bias);
            call.mean = at<float>(mean), call.var = at<float>(var), call.eps = eps, call.training = training;
            call.y = at<void>(y), call.count = at<int64_t>(count), call.workspace = at<void>(workspace);
            py::gil_scoped_release release;
            cuda::dice_forward(call, stream_at(stream));
        },
        R"(Writes y [N, C], and count [1] of int64; in training also the batch's mean and var [C], which are read otherwise.

Arrays are addresses on the device, C-contiguous: x [N, C] of dtype float32, bfloat16 or float16, mask [N] of bool or 0,
alpha, weight, bias [C] of float32, the last two or 0.)");
    m.def(
        "dice_backward",
        [](const std::string& dtype, int64_t rows, int64_t channels, Address x, Address mask, Address alpha,
           Address weight, Address bias, Address mean, Address var, float eps, bool training, Address grad_y,
           Address grad_x, Address grad_alpha, Address grad_weight, Address grad_bias, Address count, Address workspace,
           Address stream) {
            cuda::Dice call{};
            call.dtype = dtype_of(dtype), call.rows = rows, call.channels = channels;
            call.x = at<const void>(x), call.mask = at<const bool>(mask), call.alpha = at<const float>(alpha);
            call.weight = at<const float>(weight), call.bias = at<const float>(bias);
            call.mean = at<float>(mean), call.var = at<float>(var), call.eps = eps, call.training = training;
            call.grad_y = at<const void>(grad_y), call.grad_x = at<void>(grad_x);
            call.grad_alpha = at<float>(grad_alpha), call.grad_weight = at<float>(grad_weight);
            call.grad_bias = at<float>(grad_bias), call.count = at<int64_t>(count);
            call.workspace = at<void>(workspace);
            py::gil_scoped_release release;
            cuda::dice_backward(call, stream_at(stream));
        },
        R"(Writes the gradients of x [N, C] and of alpha, weight and bias [C], given that of y; count [1] is scratch.)");
}

}  // namespace din_kernels::python
