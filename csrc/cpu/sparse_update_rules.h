// The update of one row [D], given the sum g of its gradients: one struct per rule, as in din_kernels/sparse_update.h.
// kStates: how many states are [V, D].
#pragma once

#include "sparse_update_call.h"
#include "table_rows.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

template <typename T>
struct Constants {
    T step, beta1, beta2, eps;
};

struct Sgd {
    static constexpr int kStates = 0;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict /*first*/, T* __restrict /*second*/,
                      const T* __restrict g, Constants<T> c) {
        for (int64_t d = 0; d < dim; ++d) weight[d] -= c.step * g[d];
    }
};

struct Momentum {
    static constexpr int kStates = 1;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* __restrict /*second*/,
                      const T* __restrict g, Constants<T> c) {
        for (int64_t d = 0; d < dim; ++d) {
            first[d] = c.beta1 * first[d] + g[d];
            weight[d] -= c.step * first[d];
        }
    }
};

struct Nesterov {
    static constexpr int kStates = 1;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* __restrict /*second*/,
                      const T* __restrict g, Constants<T> c) {
        for (int64_t d = 0; d < dim; ++d) {
            first[d] = c.beta1 * first[d] + g[d];
            weight[d] -= c.step * (g[d] + c.beta1 * first[d]);
        }
    }
};

struct Adagrad {
    static constexpr int kStates = 1;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* __restrict /*second*/,
                      const T* __restrict g, Constants<T> c) {
        for (int64_t d = 0; d < dim; ++d) {
            first[d] += g[d] * g[d];
            weight[d] -= c.step * g[d] / (root(first[d]) + c.eps);
        }
    }
};

struct RowwiseAdagrad {
    static constexpr int kStates = 0;  // [V], not [V, D]
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* __restrict /*second*/,
                      const T* __restrict g, Constants<T> c) {
        Vec<T> squares{};
        int64_t d = 0;
        for (; d + kLanes<T> <= dim; d += kLanes<T>) squares += load(g + d) * load(g + d);
        T total = sum<T>(squares);
        for (; d < dim; ++d) total += g[d] * g[d];
        first[0] += total / T(dim);
        const T step = c.step / (root(first[0]) + c.eps);
        for (d = 0; d < dim; ++d) weight[d] -= step * g[d];
    }
};

struct Adam {
    static constexpr int kStates = 2;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* __restrict second,
                      const T* __restrict g, Constants<T> c) {
        const T keep1 = 1 - c.beta1, keep2 = 1 - c.beta2;
        for (int64_t d = 0; d < dim; ++d) {
            first[d] += keep1 * (g[d] - first[d]);
            second[d] += keep2 * (g[d] * g[d] - second[d]);
            weight[d] -= c.step * first[d] / (root(second[d]) + c.eps);
        }
    }
};

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
