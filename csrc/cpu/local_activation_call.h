// What the driver hands to the kernels of an ISA: the call, its packed weights and its plan.
#pragma once

#include <cstdint>

#include "din_kernels/local_activation.h"
#include "local_activation_plan.h"

namespace din_kernels::cpu {

// The MLP packed once per call; p marks a width padded with zeros to the vector. With W1 = [Wq, Wk, Wd, Wp]:
//   z1 = (Wk - Wd) k + Wp (q * k) + (Wq + Wd) q + b1        (concat; product has no Wd)
template <typename T>
struct PackedMlp {
    int hidden;                     // hidden layers; layer `hidden` is the output layer of width 1
    int64_t dim, dim_p;             // D
    int64_t width[kMaxHidden + 1];  // H of each layer
    int64_t width_p[kMaxHidden + 1];
    const T* first_t;                    // [2D, H1p]: rows of (Wk - Wd)^T, then of Wp^T
    const T* query_t;                    // [D, H1p]: (Wq + Wd)^T
    const T* weight_t[kMaxHidden + 1];   // layer l >= 1: [H(l-1), H(l)p]
    const T* bias[kMaxHidden + 1];       // [Hp]
    const T* params[kMaxHidden + 1][3];  // [Hp]; Dice: alpha, mean, 1 / sqrt(var + eps)
    // backward only
    const T* history;                 // [H1, Dp]: Wk - Wd
    const T* product;                 // [H1, Dp]: Wp
    const T* query;                   // [H1, Dp]: Wq + Wd
    const T* weight[kMaxHidden + 1];  // layer l >= 1: [H(l), H(l-1)p]
    const T* zeros;                   // as wide as anything
};

// Weight gradients of one block, later summed over the blocks in order.
template <typename T>
struct PartialGrads {
    T* history;                    // [H1, Dp]: sum dz1 k^T
    T* product;                    // [H1, Dp]: sum dz1 (q * k)^T
    T* query;                      // [H1, Dp]: sum dc q^T
    T* weight[kMaxHidden + 1];     // layer l >= 1: [H(l), H(l-1)p]
    T* bias[kMaxHidden + 1];       // [Hp]
    T* params[kMaxHidden + 1][3];  // [Hp]
};

template <typename T>
struct Call {
    const LocalActivationArgs<T>* args;
    PackedMlp<T> mlp;
    const Plan* plan;
    T* partial_sums;  // forward [partials, Dp + 2]: pooled, top, total; backward [partials, D]: gradients of the query
    T* partial_rows;  // [partial_rows, D] gradients of histories that several blocks share
};

template <typename T>
struct Kernels {
    int lanes;
    int64_t (*workspace)(const PackedMlp<T>&, bool backward);  // elements that one thread needs
    void (*forward)(const Call<T>&, int64_t first, int64_t last, T* workspace);
    void (*backward)(const Call<T>&, int64_t first, int64_t last, T* workspace, const PartialGrads<T>&);
};

namespace baseline {
extern const Kernels<float> local_activation_float;
extern const Kernels<double> local_activation_double;
}  // namespace baseline
namespace avx2 {
extern const Kernels<float> local_activation_float;
extern const Kernels<double> local_activation_double;
}  // namespace avx2
namespace avx512 {
extern const Kernels<float> local_activation_float;
extern const Kernels<double> local_activation_double;
}  // namespace avx512

}  // namespace din_kernels::cpu
