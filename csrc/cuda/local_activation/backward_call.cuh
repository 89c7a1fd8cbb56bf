// The parameters of a launch of backward, and the shared arrays of its blocks.
#pragma once

#include "local_activation/backward_plan.h"
#include "local_activation/mlp.cuh"

namespace din_kernels::cuda {

template <typename S, bool kFolded>
struct BackwardCall : TileCall<S, kFolded> {
    bool by_two;  // D is even, and rows of all arrays [.., D] can be read and written two elements at a time
    BackwardPlan plan;
    // packed transposes
    Global<const uint32_t> weight_k_transposed, weight_qk_transposed;  // [H1, D]; null where folded
    Global<const uint32_t> matrices_transposed;                        // A_i^T [chunk, H1, D]; null where not folded
    Global<const uint32_t> transposed[kMaxHidden];                     // [H, H before], from layer 1 on
    // read
    Global<const float> statistics;         // [2, padded_sum] or null: means of du and du u
    Global<const S> grad_pooled;            // [Q, D]
    Global<const float> grad_pair_weights;  // [total_pairs] or null
    Global<const int64_t> pair_first;       // [Q + 1]: pairs before each candidate
    Global<const double> logsumexp;         // [Q], softmax
    Global<const float> dots;               // [Q], softmax
    // written: one of the first three, or none
    Global<S> grad_rows;               // [M, D] or null
    Global<float> grad_rows_sum;       // [M, D] or null: where candidates share rows
    Global<float> grad_pairs;          // [pairs, D] or null
    Global<float> partials;            // [blocks, 2, candidate_width]
    Global<float> constants_gradient;  // [Q, padded H1]
    Global<float> query_gradient;      // [Q, D], or folded dA_i [chunk, padded H1, D]
    Global<float> gradients, columns;  // [blocks, gradient_size] and [blocks, columns_size]
};

// The shared arrays of a block that only backward has, see backward_plan.h.
struct BackwardShared {
    const BackwardPlan& plan;

    __device__ Shared<float> floats(int64_t offset, int64_t size) const {
        return Shared<float>(uint32_t(offset), int(size));
    }
    __device__ Shared<float> z(int layer) const {
        return floats(plan.z[layer], plan.tile.rows * plan.sizes.z_stride[layer]);
    }
    template <typename S>
    __device__ Shared<S> dz(int layer) const {
        return Shared<S>(uint32_t(plan.dz[layer % 2]), plan.tile.rows * plan.dz_stride);
    }
    __device__ Shared<float> weight() const { return floats(plan.weight, plan.tile.rows); }
    __device__ Shared<float> ds() const { return floats(plan.ds, plan.tile.rows); }
    __device__ Shared<float> contribution() const {
        return floats(plan.contribution, plan.sizes.folded ? 0 : plan.tile.rows * plan.contribution_stride);
    }
    __device__ Shared<float> scratch() const {
        return floats(plan.scratch, kColumnSums * plan.tile.warps * plan.widest);
    }
    __device__ Shared<float> column_sums() const { return floats(plan.column_sums, plan.columns_size); }
    __device__ Shared<float> candidate_sums() const {
        return floats(plan.candidate_sums, plan.sizes.folded ? plan.sizes.padded[0] : plan.candidate_width);
    }

    // Zeros where the products read before a layer has written.
    template <typename S>
    __device__ void clear() const {
        for (int e = int(threadIdx.x); e < plan.tile.rows * plan.dz_stride; e += int(blockDim.x))
            dz<S>(0).store(e, S{}), dz<S>(1).store(e, S{});
    }
};

}  // namespace din_kernels::cuda
