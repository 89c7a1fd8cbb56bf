// Sparse optimizer steps with mini-batch aware regularization (DIN, section 5.1, equation 6) as plain C++:
// what a call is, on a CPU and on a GPU.
#pragma once

#include "din_kernels/arrays.h"

namespace din_kernels {

enum class UpdateRule { kSgd, kMomentum, kNesterov, kAdagrad, kRowwiseAdagrad, kAdam };
constexpr Named<UpdateRule> kUpdateRules[] = {{"sgd", UpdateRule::kSgd},
                                              {"momentum", UpdateRule::kMomentum},
                                              {"nesterov", UpdateRule::kNesterov},
                                              {"adagrad", UpdateRule::kAdagrad},
                                              {"rowwise_adagrad", UpdateRule::kRowwiseAdagrad},
                                              {"adam", UpdateRule::kAdam}};

// Arrays that a rule keeps per table. din_kernels/options.py says the same in Python.
constexpr int states_per_table(UpdateRule rule) {
    return rule == UpdateRule::kSgd ? 0 : rule == UpdateRule::kAdam ? 2 : 1;
}

// One table. For every id j that appears, with g_j the sum of its gradients:
//   g <- g_j + coeff w_j / n_j                    (decoupled: w_j <- w_j - lr coeff w_j / n_j instead)
//   sgd       w -= step g
//   momentum  b <- beta1 b + g;   w -= step b     (Nesterov: w -= step (g + beta1 b))
//   adagrad   s += g^2;           w -= step g / (sqrt(s) + eps)      (row-wise: s += mean_d g_d^2)
//   adam      m += (1 - beta1)(g - m);   v += (1 - beta2)(g^2 - v);   w -= step m / (sqrt(v) + eps)
// Other rows are neither read nor written.
struct SparseUpdate {
    DType dtype;                 // of weight and grads; states are of float, or for kDouble of double
    int64_t rows, dim, entries;  // V, D, N; V and N below 2^32, on a GPU below 2^31
    void* weight;                // [V, D]
    void* first;                 // [V, D]: b, s or m; row-wise Adagrad: [V]
    void* second;                // [V, D]: v
    Ids ids;                     // [N], within 0 .. V
    const void* grads;           // [N, D]
    Counts counts;
    int64_t padding_idx;  // this row is never touched; -1: none
    UpdateRule rule;
    double lr, step, beta1, beta2, eps, coeff;
    bool maximize;  // gradients change sign, the regularizer does not
    bool decoupled;
};

// On the CPU. Runs on `threads` OpenMP threads; results do not depend on the number, bit for bit.
void sparse_update(const SparseUpdate& call, int threads);

}  // namespace din_kernels
