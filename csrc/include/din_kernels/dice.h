// Dice (DIN, section 5.3, equation 5) over rows of channels as plain C++: what a call is, on a CPU and on a GPU.
#pragma once

#include "din_kernels/arrays.h"

namespace din_kernels {

// y = s (alpha + (1 - alpha) p),  p = sigmoid(z),  z = (s - mean) r weight + bias,  r = 1 / sqrt(var + eps)
// In training, mean and var (biased) are those of the valid rows, and the gradient flows through both; without a valid
// row they are 0 and 1. Rows that are not valid give 0 and are not read. Numbers per channel are float, or for dtype
// kDouble double.
struct Dice {
    DType dtype;             // of x, y and their gradients
    int64_t rows, channels;  // N, C
    const void* x;           // [N, C]
    const bool* mask;        // [N], true where valid, or null: all
    const void* alpha;       // [C]
    const void* weight;      // [C], or null: 1
    const void* bias;        // [C], or null: 0
    void* mean;              // [C]: written by the forward in training, else given
    void* var;               // [C]
    double eps;
    bool training;
    void* y;  // [N, C], forward alone
    // Backward alone.
    const void* grad_y;  // [N, C]
    void* grad_x;        // [N, C]
    void* grad_alpha;    // [C]
    void* grad_weight;   // [C], or null
    void* grad_bias;     // [C], or null
};

// On the CPU. Writes y, and in training mean and var; returns the number of valid rows. Runs on `threads` OpenMP
// threads; results do not depend on the number, bit for bit.
int64_t dice_forward(const Dice& call, int threads);
void dice_backward(const Dice& call, int threads);

}  // namespace din_kernels
