// Dice (DIN, section 5.3, equation 5) over rows of channels as plain C++.
#pragma once

#include "din_kernels/arrays.h"

namespace din_kernels {

// y = s (alpha + (1 - alpha) p),  p = sigmoid(z),  z = (s - mean) r weight + bias,  r = 1 / sqrt(var + eps)
// In training, mean and var (biased) are those of the valid rows, and the gradient flows through both; without a valid
// row they are 0 and 1. Rows that are not valid give 0 and are not read.
template <typename S>
struct DiceArgs {
    int64_t rows, channels;  // N, C
    const S* x;              // [N, C]
    const bool* mask;        // [N], true where valid, or null: all
    const Wide<S>* alpha;    // [C]
    const Wide<S>* weight;   // [C], or null: 1
    const Wide<S>* bias;     // [C], or null: 0
    Wide<S>* mean;           // [C]: written by the forward in training, else given
    Wide<S>* var;            // [C]
    double eps;
    bool training;
};

// Writes y [N, C], and in training mean and var; returns the number of valid rows. Runs on `threads` OpenMP threads;
// results do not depend on the number, bit for bit.
template <typename S>
int64_t dice_forward(const DiceArgs<S>& args, S* y, int threads);

template <typename S>
struct DiceGrads {
    const S* y;       // [N, C], given; the rest is written
    S* x;             // [N, C]
    Wide<S>* alpha;   // [C]
    Wide<S>* weight;  // [C], or null
    Wide<S>* bias;    // [C], or null
};

template <typename S>
void dice_backward(const DiceArgs<S>& args, const DiceGrads<S>& grads, int threads);

}  // namespace din_kernels
