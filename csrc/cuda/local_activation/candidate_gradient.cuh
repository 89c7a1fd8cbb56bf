// A tile adds to the gradients of its candidates: to dc_i, and to the part of dq_i that comes by q * k, or folded to
// dA_i.
#pragma once

#include "local_activation/weight_gradient.cuh"

namespace din_kernels::cuda {

// Sums over a candidate's rows of dz1 (dc_i) and of k (dz1 Wp), as Pooling of the forward takes them: every thread owns
// columns. Folded, dA_i stands for the second and lies in the front of GradientSum. candidate_sums:
//
//   columns   0 .. padded H1    .. candidate_width
//             dc_i              dq_i by q * k, flat alone
template <typename S, bool kFolded>
struct CandidateSums {
    const BackwardCall<S, kFolded>& call;
    const Range& range;
    int64_t candidate = -1;

    // The candidate's rows end here, or the block's do. The sums go where they are asked for, or, where another block
    // has some of its rows, to one of the block's two partials, see schedule.cuh.
    __device__ void finish(const Shared<float>& sums) const {
        if (candidate < 0) return;
        const int columns = call.weights.sizes.padded[0], rest = call.plan.candidate_width - columns;
        const Slots& slots = call.loader.pairs.slots;
        const bool began = range.begins(slots, candidate), ended = range.ends(slots, candidate);
        const int64_t partial = (2 * int64_t(blockIdx.x) + (began ? 1 : 0)) * call.plan.candidate_width;
        const auto write = [&](int at, float sum) {
            if (!began || !ended)
                call.partials.store(partial + at, sum);
            else if (at < columns)
                call.constants_gradient.store(candidate * columns + at, sum);
            else
                call.query_gradient.store((kFolded ? candidate - slots.begin : candidate) * rest + at - columns, sum);
        };
        const int held = kFolded ? columns : call.plan.candidate_width;
        for (int at = int(threadIdx.x); at < held; at += int(blockDim.x)) write(at, sums[at]);
        if (!kFolded) return;
        // dA_i, a warp per row.
        const GradientSum<S, kFolded> gradient{call};
        const int dim = call.weights.sizes.dim;
        for (int n = int(threadIdx.x) / 32; n < columns; n += call.plan.tile.warps)
            for (int d = int(threadIdx.x) % 32; d < dim; d += 32)
                write(columns + n * dim + d,
                      gradient.template load<1>(int64_t(n) * call.plan.gradient_stride[0] + d).at[0]);
    }

    // Folded, before the gradient of a tile is added: the tile's candidate becomes the present one.
    __device__ void open(int64_t mine, const Shared<float>& sums) {
        if (mine == candidate) return;
        finish(sums);
        __syncthreads();
        candidate = mine;
        const int columns = call.weights.sizes.padded[0];
        const GradientSum<S, kFolded> gradient{call};
        for (int at = int(threadIdx.x); at < columns; at += int(blockDim.x)) sums.store(at, 0.0f);
        for (int at = int(threadIdx.x); at < columns * call.plan.gradient_stride[0]; at += int(blockDim.x))
            gradient.template store<1>(at, {{0.0f}});
        __syncthreads();
    }

    // Adds the tile's rows, candidate by candidate.
    __device__ void add(const Shared<int>& candidates, const Shared<float>& dz, const Shared<float>& contribution,
                        const Shared<float>& sums, int64_t slot, int valid) {
        const int columns = call.weights.sizes.padded[0], dim = call.weights.sizes.dim;
        const int dz_stride = call.weights.sizes.z_stride[0], stride = call.plan.contribution_stride;
        for (int first = 0; first < valid;) {
            const int mine = candidates[first], last = call.loader.pairs.slots.last_row(mine, slot, valid);
            const bool fresh = mine != candidate;
            if (fresh) finish(sums);
            candidate = mine;
            for (int at = int(threadIdx.x); at < (kFolded ? columns : columns + dim); at += int(blockDim.x)) {
                float total = fresh ? 0.0f : sums[at];
                for (int row = first; row < last; ++row)
                    total += at < columns ? dz[row * dz_stride + at] : contribution[row * stride + at - columns];
                sums.store(at, total);
            }
            first = last;
        }
    }
};

}  // namespace din_kernels::cuda
