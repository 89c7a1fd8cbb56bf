// The update of one row [D], given the sum g of its gradients: one struct per rule, as in din_kernels/sparse_update.h.
// kStates: how many states are [V, D].
#pragma once

#include "common/simd.h"
#include "common/table_rows.h"
#include "sparse_update/call.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

// The step's numbers, and what one row makes of them: its gradient is sign g + pull w with pull = coeff / n, and its
// weights are first multiplied by `keep`, which is 1 unless the decay is decoupled. Where pull is 0 it selects: a
// weight that is infinite or NaN, times 0, would make NaN of its state too.
template <typename T>
struct Constants {
    T step, beta1, beta2, eps, sign, pull, keep;
    template <typename V>  // T, or a vector of it
    V gradient(V g, V weight) const {
        return pull == 0 ? sign * g : sign * g + pull * weight;
    }
};

struct Sgd {
    static constexpr int kStates = 0;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* /*first*/, T* /*second*/, T* __restrict g, Constants<T> c) {
        for (int64_t d = 0; d < dim; ++d) {
            const T w = weight[d];
            weight[d] = c.keep * w - c.step * c.gradient(g[d], w);
        }
    }
};

struct Momentum {
    static constexpr int kStates = 1;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* /*second*/, T* __restrict g,
                      Constants<T> c) {
        for (int64_t d = 0; d < dim; ++d) {
            const T w = weight[d], b = c.beta1 * first[d] + c.gradient(g[d], w);
            first[d] = b;
            weight[d] = c.keep * w - c.step * b;
        }
    }
};

struct Nesterov {
    static constexpr int kStates = 1;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* /*second*/, T* __restrict g,
                      Constants<T> c) {
        for (int64_t d = 0; d < dim; ++d) {
            const T w = weight[d], gradient = c.gradient(g[d], w), b = c.beta1 * first[d] + gradient;
            first[d] = b;
            weight[d] = c.keep * w - c.step * (gradient + c.beta1 * b);
        }
    }
};

struct Adagrad {
    static constexpr int kStates = 1;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* /*second*/, T* __restrict g,
                      Constants<T> c) {
        for (int64_t d = 0; d < dim; ++d) {
            const T w = weight[d], gradient = c.gradient(g[d], w), s = first[d] + gradient * gradient;
            first[d] = s;
            weight[d] = c.keep * w - c.step * gradient / (root(s) + c.eps);
        }
    }
};

struct RowwiseAdagrad {
    static constexpr int kStates = 0;  // [V], not [V, D]
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* /*second*/, T* __restrict g,
                      Constants<T> c) {
        Vec<T> squares{};
        int64_t d = 0;
        for (; d + kLanes<T> <= dim; d += kLanes<T>) {
            const Vec<T> gradient = c.gradient(load(g + d), load(weight + d));
            store(g + d, gradient);
            squares += gradient * gradient;
        }
        T total = sum<T>(squares);
        for (; d < dim; ++d) {
            g[d] = c.gradient(g[d], weight[d]);
            total += g[d] * g[d];
        }
        first[0] += total / T(dim);
        const T step = c.step / (root(first[0]) + c.eps);
        for (d = 0; d < dim; ++d) weight[d] = c.keep * weight[d] - step * g[d];
    }
};

struct Adam {
    static constexpr int kStates = 2;
    template <typename T>
    static void apply(int64_t dim, T* __restrict weight, T* __restrict first, T* __restrict second, T* __restrict g,
                      Constants<T> c) {
        const T keep1 = 1 - c.beta1, keep2 = 1 - c.beta2;
        for (int64_t d = 0; d < dim; ++d) {
            const T w = weight[d], gradient = c.gradient(g[d], w);
            const T m = first[d] + keep1 * (gradient - first[d]);
            const T v = second[d] + keep2 * (gradient * gradient - second[d]);
            first[d] = m, second[d] = v;
            weight[d] = c.keep * w - c.step * m / (root(v) + c.eps);
        }
    }
};

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
