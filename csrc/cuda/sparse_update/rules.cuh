// One element of a row under every rule; formulas in din_kernels/sparse_update.h.
#pragma once

#include "common/accessors.cuh"
#include "din_kernels/sparse_update.h"

namespace din_kernels::cuda {

struct Rule {
    UpdateRule rule;
    float lr, step, beta1, beta2, eps, coeff;
    bool maximize, decoupled;
};

// g of element w, with the sign of the step and the regularizer of a row with n_j = count (0: no regularizer). A
// decoupled regularizer shrinks w itself.
__device__ inline float regularized(const Rule& rule, float g, float& w, float count) {
    if (rule.maximize) g = -g;
    if (count > 0.0f) {
        const float decay = rule.coeff / count;
        if (rule.decoupled)
            w -= rule.lr * decay * w;
        else
            g += decay * w;
    }
    return g;
}

// Returns the new weight and updates first and second in place. Row-wise Adagrad brings the state of its row, already
// updated, as first.
__device__ inline float stepped(const Rule& rule, float w, float g, float& first, float& second) {
    switch (rule.rule) {
        case UpdateRule::kSgd:
            return w - rule.step * g;
        case UpdateRule::kMomentum:
            first = rule.beta1 * first + g;
            return w - rule.step * first;
        case UpdateRule::kNesterov:
            first = rule.beta1 * first + g;
            return w - rule.step * (g + rule.beta1 * first);
        case UpdateRule::kAdagrad:
            first += g * g;
            return w - rule.step * g / (sqrtf(first) + rule.eps);
        case UpdateRule::kRowwiseAdagrad:
            return w - rule.step * g / (sqrtf(first) + rule.eps);
        case UpdateRule::kAdam:
            first += (1.0f - rule.beta1) * (g - first);
            second += (1.0f - rule.beta2) * (g * g - second);
            return w - rule.step * first / (sqrtf(second) + rule.eps);
    }
    return w;
}

}  // namespace din_kernels::cuda
