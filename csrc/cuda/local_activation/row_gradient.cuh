// The gradient of the tile's rows of the history, and what they add to the gradient of their candidates by q * k:
//   flat     dk = w g + dz1 (Wk - Wd) + q (dz1 Wp),   contribution = k (dz1 Wp)
//   folded   dk = w g + dz1 A_i
#pragma once

#include "local_activation/backward_call.cuh"

namespace din_kernels::cuda {

// dk of the warp's rows. `to` says where the rows' gradients go, one per source row or one per pair.
template <typename Math, bool kFolded>
struct RowGradient {
    using S = typename Math::Storage;
    const BackwardCall<S, kFolded>& call;
    const BackwardShared& shared;
    const Shared<S>& history;
    int64_t candidate[2], to[2];  // of the lane's two rows
    float weight[2];

    __device__ RowGradient(const BackwardCall<S, kFolded>& call, const BackwardShared& shared, const Shared<S>& history,
                           const Shared<int>& candidates, const Shared<int64_t>& source_rows, int64_t slot)
        : call(call), shared(shared), history(history) {
        for (int half = 0; half < 2; ++half) {
            const int row = lane_position(0, half).row;
            const int64_t i = candidates[row];
            candidate[half] = i, weight[half] = shared.weight()[row];
            if (i >= 0 && call.grad_pairs)
                to[half] = call.pair_first[i] + slot + row - call.loader.pairs.slots.before(i);
            else
                to[half] = source_rows[row];
        }
    }

    // `matrix` is the number of the tile's A_i^T in the chunk, where folded.
    __device__ __forceinline__ void run(int64_t matrix) const {
        const int stride = call.plan.dz_stride, first = int(threadIdx.x) / 32 * kRowsPerWarp * stride;
        const int steps = (call.weights.sizes.padded[0] + Math::kDepth - 1) / Math::kDepth;
        const int64_t words = call.plan.fold.transposed_words;
        const Shared<S> dz = shared.dz<S>(0);
        for_groups(call.plan.dim8 / 8, [&](int group, auto count) {
            constexpr int kCount = decltype(count)::value;
            Sums<kCount> by_k = {}, by_qk = {};
            if constexpr (kFolded) {
                Math::multiply(by_k, dz, first, stride, steps, call.matrices_transposed.part(matrix * words, words),
                               group);
            } else {
                Math::multiply(by_k, dz, first, stride, steps, call.weight_k_transposed, group);
                Math::multiply(by_qk, dz, first, stride, steps, call.weight_qk_transposed, group);
            }
#pragma unroll
            for (int t = 0; t < kCount; ++t)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    finish_pair(half, lane_position(group + t, half).column, by_k[t], by_qk[t]);
        });
    }

 private:
    // Two neighbouring columns at once, or one by one where rows cannot be accessed two elements at a time.
    __device__ __forceinline__ void finish_pair(int half, int column, const float (&of_k)[4],
                                                const float (&of_qk)[4]) const {
        const int left = 2 * half, right = left + 1;
        if (call.by_two) {
            finish(half, column, Vector<float, 2>{{of_k[left], of_k[right]}},
                   Vector<float, 2>{{of_qk[left], of_qk[right]}});
            return;
        }
#pragma unroll 1
        for (int c = 0; c < 2; ++c)
            finish(half, column + c, Vector<float, 1>{{c == 0 ? of_k[left] : of_k[right]}},
                   Vector<float, 1>{{c == 0 ? of_qk[left] : of_qk[right]}});
    }

    // Columns `column` .. of a row, with the sums dz1 (Wk - Wd) or dz1 A_i, and dz1 Wp.
    template <int kWidth>
    __device__ __forceinline__ void finish(int half, int column, const Vector<float, kWidth>& k_sums,
                                           const Vector<float, kWidth>& qk_sums) const {
        const Sizes& sizes = call.weights.sizes;
        const int dim = sizes.dim, row = lane_position(0, half).row;
        if (column >= dim) return;
        Vector<float, kWidth> contributions{};
        if (candidate[half] >= 0) {
            const auto g = call.grad_pooled.template load<kWidth>(candidate[half] * dim + column);
            Vector<float, kWidth> dk = k_sums;
#pragma unroll
            for (int c = 0; c < kWidth; ++c) dk.at[c] = fmaf(weight[half], widen(g.at[c]), dk.at[c]);
            if constexpr (!kFolded) {
                const auto q = call.query.template load<kWidth>(candidate[half] * dim + column);
                const auto k = history.template load<kWidth>(row * sizes.stride[0] + column);
#pragma unroll
                for (int c = 0; c < kWidth; ++c) {
                    dk.at[c] = fmaf(widen(q.at[c]), qk_sums.at[c], dk.at[c]);
                    contributions.at[c] = qk_sums.at[c] * widen(k.at[c]);
                }
            }
            store(to[half] * dim + column, dk);
        }
        if constexpr (!kFolded)
            shared.contribution().template store<kWidth>(row * call.plan.contribution_stride + column, contributions);
    }

    template <int kWidth>
    __device__ __forceinline__ void store(int64_t cell, const Vector<float, kWidth>& dk) const {
        if (call.grad_rows)
            call.grad_rows.template store<kWidth>(cell, narrow_vector<S>(dk));
        else if (call.grad_pairs)
            call.grad_pairs.template store<kWidth>(cell, dk);
        else if (call.grad_rows_sum)
            for (int c = 0; c < kWidth; ++c) call.grad_rows_sum.atomic_add(cell + c, dk.at[c]);
    }
};

}  // namespace din_kernels::cuda
