// What the driver hands to the kernels of an ISA: the call, its packed weights and its plan.
#pragma once

#include <cstdint>

#include "common/kernel_table.h"
#include "din_kernels/local_activation.h"
#include "local_activation/plan.h"

namespace din_kernels::cpu {

// The MLP packed once per call. The blocks of the first weight are W1 = [Wq, Wk, Wd, Wp] for concat, [Wq, Wk, Wp] for
// product and [Wq, Wk, Wo] for outer features. Wd, of q - k, is folded into its neighbours:
//   z1 = (Wk - Wd) k + Wp (q * k) + (Wq + Wd) q + b1        weight_k = Wk - Wd, weight_qk = Wp, weight_q = Wq + Wd
//   z1 = (Wk + sum_j Wo[:, j, :] q_j) k + Wq q + b1         weight_k = Wk, weight_outer = Wo, weight_q = Wq
// A p marks a width that is padded with zeros to the vector, here D = 5 and 8 lanes:
//
//     weight_k [H1, Dp]     | w w w w w 0 0 0 |     a row per channel; with _t [D, H1p] a row per d
template <typename T>
struct PackedMlp {
    int hidden;                     // hidden layers; layer `hidden` is the output layer of width 1
    int64_t dim, dim_p;             // D
    int64_t width[kMaxHidden + 1];  // H of each layer
    int64_t width_p[kMaxHidden + 1];
    const T* weight_k_t;                          // [D, H1p]: (Wk - Wd)^T
    const T* weight_qk_t;                         // [D, H1p]: Wp^T
    const T* weight_q_t;                          // [D, H1p]: (Wq + Wd)^T
    const T* weight_outer_t;                      // [D (of k), D (of q), H1p]
    const T* weight_t[kMaxHidden + 1];            // layer l >= 1: [H(l-1), H(l)p]
    const T* bias[kMaxHidden + 1];                // [Hp]
    const T* params[kMaxHidden + 1][kMaxParams];  // [Hp]; Dice: alpha, mean, 1 / sqrt(var + eps)
    // backward only
    const T* weight_k;                // [H1, Dp]: Wk - Wd
    const T* weight_qk;               // [H1, Dp]: Wp
    const T* weight_q;                // [H1, Dp]: Wq + Wd
    const T* weight_outer;            // [D (of k), H1, Dp (of q)]
    const T* weight[kMaxHidden + 1];  // layer l >= 1: [H(l), H(l-1)p]
    const T* zeros;                   // as wide as anything
    // Dice in training: dz += through_mean + through_var (z - mean), what flows through the batch statistics
    const T *through_mean[kMaxHidden], *through_var[kMaxHidden];  // [Hp], zero until known
};

// Weight gradients of one block, later summed over the blocks in order.
template <typename T>
struct PartialGrads {
    T* weight_k;                            // [H1, Dp]: sum dz1 k^T
    T* weight_qk;                           // [H1, Dp]: sum dz1 (q * k)^T
    T* weight_q;                            // [H1, Dp]: sum dc q^T
    T* weight[kMaxHidden + 1];              // layer l >= 1: [H(l), H(l-1)p]
    T* bias[kMaxHidden + 1];                // [Hp]
    T* params[kMaxHidden + 1][kMaxParams];  // [Hp]
};

// Count, mean and sum of squared deviations per channel, in double so that merging loses nothing.
struct Moments {
    double count;
    double *mean, *squares;  // [Hp]
};

// With outer features the candidates' own matrices are made together, for a round of entries at a time: every block
// brings the same number of its entries, and entry i of the round has the i-th of each array.
//
//     round 0   | block 0: e0 e1 | block 1: e9 e10 | block 2: e15 e16 |     `slot` of a block: where its entries begin,
//     round 1   | block 0: e2 e3 | block 1: e11    | block 2: e17 e18 |     0, 2 and 4 in round 0
template <typename T>
struct OuterRound {
    int64_t count;         // entries
    T* queries;            // [count, Dp]
    T* folded_t;           // [count, D, H1p]: A^T; backward leaves dA^T there
    T* grad_queries;       // [count, Dp]
    T* grad_weight_outer;  // [D (of k), D (of q), H1p], sums over rounds
    T* grad_weight_k;      // [D, H1p]
};

// The call with its arrays of the arithmetic type T, its packed weights and its plan.
template <typename T>
struct Call {
    const LocalActivation& args;
    T scale = T(args.scale);
    T* pooled = static_cast<T*>(args.pooled);                                    // [Q, D]
    T* pair_weights = static_cast<T*>(args.pair_weights);                        // [total_pairs]
    const T* grad_pooled = static_cast<const T*>(args.grad_pooled);              // [Q, D]
    const T* grad_pair_weights = static_cast<const T*>(args.grad_pair_weights);  // [total_pairs] or null
    PackedMlp<T> mlp{};
    const Plan* plan = nullptr;
    // Forward [partials, Dp + 2]: pooled, top, total. Backward [partials, D]: gradients of the query.
    T* partial_sums = nullptr;
    T* partial_rows = nullptr;  // [partial_rows, D] gradients of histories that several blocks share
    OuterRound<T> outer{};
};

// A block's entries `first` .. `last` of the plan, and the memory that stays with it.
template <typename T>
struct Block {
    int64_t first, last;
    int64_t slot;  // in the round, outer features only
    T* memory;
};

template <typename T>
struct Kernels {
    int lanes;
    int64_t (*workspace)(const PackedMlp<T>&, bool backward, int64_t shared_rows);  // elements that a block needs
    void (*forward)(const Call<T>&, const Block<T>&);
    // Adds the moments of z of hidden layer `layer` over the block's pairs.
    void (*moments)(const Call<T>&, const Block<T>&, int layer, Moments&);
    // `only` < hidden: gradients of that layer's activation parameters alone; else everything.
    void (*backward)(const Call<T>&, const Block<T>&, int only, const PartialGrads<T>&);
    // Outer features, for row d of the matrices: A^T of the round; its share of the weights' gradients. And the
    // gradients of the round's queries through A, entries `first` .. `last`.
    void (*outer_fold)(const Call<T>&, int64_t d);
    void (*outer_weight_gradients)(const Call<T>&, int64_t d);
    void (*outer_query_gradients)(const Call<T>&, int64_t first, int64_t last);
    void (*fetch_query)(const LocalActivation&, int64_t query, int64_t dim_p, T* to);
    void (*write_query_grad)(const LocalActivation&, int64_t query, const T* from);
    void (*write_history_grad)(const LocalActivation&, int64_t row, const T* from);
};

DIN_KERNELS_TABLES(ArithmeticTable<Kernels>, local_activation_kernels)

}  // namespace din_kernels::cpu
