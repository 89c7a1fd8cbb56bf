// dice on a GPU; formulas and fields in din_kernels/dice.h.
#pragma once

#include "din_kernels/cuda.h"
#include "din_kernels/dice.h"

namespace din_kernels::cuda {

// N is below 2^31.
struct Dice : din_kernels::Dice {
    int64_t* count;   // [1]: valid rows
    void* workspace;  // dice_workspace(N, C) bytes
};

int64_t dice_workspace(int64_t rows, int64_t channels);
void dice_forward(const Dice& call, Stream stream);
void dice_backward(const Dice& call, Stream stream);

}  // namespace din_kernels::cuda
