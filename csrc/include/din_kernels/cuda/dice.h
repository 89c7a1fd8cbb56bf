// dice on a GPU; formulas in din_kernels/dice.h.
#pragma once

#include "din_kernels/cuda.h"

namespace din_kernels::cuda {

struct Dice {
    DType dtype;                         // of x, y and their gradients; the rest is fp32
    int64_t rows, channels;              // N, C; N below 2^31
    const void* x;                       // [N, C]
    const bool* mask;                    // [N] or null: valid rows
    const float *alpha, *weight, *bias;  // [C]; weight and bias or null
    float *mean, *var;                   // [C]: read, or in a training forward written
    float eps;
    bool training;
    void* y;                                      // [N, C], forward
    int64_t* count;                               // [1], forward: valid rows
    const void* grad_y;                           // [N, C], backward
    void* grad_x;                                 // [N, C]
    float *grad_alpha, *grad_weight, *grad_bias;  // [C]; weight and bias or null
    void* workspace;                              // dice_workspace(N, C) bytes
};

int64_t dice_workspace(int64_t rows, int64_t channels);
void dice_forward(const Dice& call, Stream stream);
void dice_backward(const Dice& call, Stream stream);

}  // namespace din_kernels::cuda
