// Outer features: A_i = Wk + sum_j Wo[:, j, :] q_ij for a round of candidates at a time, as products over the round,
// one row d of all matrices after the other; neither [Q, H1, D] nor [N, D * D] exists.
#pragma once

#include "common/gemm.h"
#include "local_activation/call.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// Row d of every A^T: Wk[:, d] + sum_j q_ij Wo[:, j, d].
template <typename T>
void outer_fold(const Call<T>& call, int64_t d) {
    const PackedMlp<T>& m = call.mlp;
    const int64_t h1 = m.width_p[0];
    gemm(call.outer.count, m.width[0], m.dim, call.outer.queries, m.dim_p, int64_t(1),
         m.weight_outer_t + d * m.dim * h1, h1, m.weight_k_t + d * h1, int64_t(0), call.outer.folded_t + d * h1,
         m.dim * h1);
}

// dWk[:, d] += sum_i dA_i[:, d];  dWo[:, j, d] += sum_i q_ij dA_i[:, d]
template <typename T>
void outer_weight_gradients(const Call<T>& call, int64_t d) {
    const PackedMlp<T>& m = call.mlp;
    const int64_t h1 = m.width_p[0];
    const T* da = call.outer.folded_t + d * h1;
    T *weight_k = call.outer.grad_weight_k + d * h1, *weight_outer = call.outer.grad_weight_outer + d * m.dim * h1;
    for (int64_t i = 0; i < call.outer.count; ++i)
        for (int64_t j = 0; j < h1; j += kLanes<T>)
            store(weight_k + j, load(weight_k + j) + load(da + i * m.dim * h1 + j));
    gemm(m.dim, m.width[0], call.outer.count, call.outer.queries, int64_t(1), m.dim_p, da, m.dim * h1, weight_outer, h1,
         weight_outer, h1);
}

// dq_ij += sum_d <Wo[:, j, d], dA_i[:, d]>
template <typename T>
void outer_query_gradients(const Call<T>& call, int64_t first, int64_t last) {
    const PackedMlp<T>& m = call.mlp;
    const int64_t h1 = m.width_p[0];
    T* dq = call.outer.grad_queries + first * m.dim_p;
    for (int64_t d = 0; d < m.dim; ++d)
        gemm(last - first, m.dim, m.width[0], call.outer.folded_t + first * m.dim * h1 + d * h1, m.dim * h1, int64_t(1),
             m.weight_outer + d * m.width[0] * m.dim_p, m.dim_p, dq, m.dim_p, dq, m.dim_p);
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
