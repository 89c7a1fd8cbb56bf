// Forward of the mini-batch aware penalty: a warp per unique row, sums in a fixed order.
#include "din_kernels/cuda/mba_penalty.h"

#include "common/block_scan.cuh"
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/table_rows.cuh"
#include "mba_penalty/plan.h"

namespace din_kernels::cuda {
namespace {

// partial[block] = sum of ||w_j||^2 / n_j over the block's rows. The number of unique rows is known on the device
// alone, so warps stride over them. Which row goes to which warp depends on the grid, and the grid on `entries` alone.
template <typename T, int kWidth>
__global__ void penalty_partials(Global<const T> weight, int64_t dim, CountArray counts,
                                 Global<const int64_t> unique,        // [N]
                                 Global<const int64_t> unique_count,  // [1]
                                 Global<double> partial) {            // [blocks]
    const Shared<double> sums(0, kPenaltyWarps);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    double total = 0;
    const int64_t rows = unique_count[0], stride = int64_t(gridDim.x) * kPenaltyWarps;
    for (int64_t row = int64_t(blockIdx.x) * kPenaltyWarps + warp; row < rows; row += stride) {
        const int64_t id = unique[row];
        float square = 0;
        for (int64_t d = lane * kWidth; d < dim; d += 32 * kWidth) {
            const Vector<T, kWidth> w = weight.template load<kWidth>(id * dim + d);
            for (int i = 0; i < kWidth; ++i) square += widen(w.at[i]) * widen(w.at[i]);
        }
        square = warp_sum(square);
        total += double(square) / double(counts[id]);
    }
    // The warps, in their order.
    if (lane == 0) sums.store(warp, total);
    __syncthreads();
    if (threadIdx.x == 0) {
        total = 0;
        for (int w = 0; w < kPenaltyWarps; ++w) total += sums[w];
        partial.store(blockIdx.x, total);
    }
}

// One warp adds the blocks' partial sums in a fixed order.
__global__ void penalty_total(Global<const double> partial, int64_t blocks, double half_coeff,
                              Global<float> penalty) {  // [1]
    double total = 0;
    for (int64_t block = threadIdx.x; block < blocks; block += 32) total += partial[block];
    total = warp_sum(total);
    if (threadIdx.x == 0) penalty.store(0, float(half_coeff * total));
}

}  // namespace

int64_t mba_penalty_workspace(int64_t rows, int64_t entries) { return plan_mba_penalty(rows, entries).bytes; }

void mba_penalty_forward(const MbaPenalty& call, Stream stream) {
    const MbaPenaltyPlan plan = plan_mba_penalty(call.rows, call.entries);
    unique_ids(plan.unique, call.workspace, call.ids, call.entries, call.rows, call.padding_idx, call.unique,
               call.unique_count, stream);
    auto* const partials = carved<double>(call.workspace, plan.partials);
    with_dtype(call.dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width(call.dim, aligned_for<4, T>({call.weight}), [&](auto width) {
            launch("penalty_partials", penalty_partials<T, width()>, Grid{plan.blocks}, kPenaltyThreads,
                   kPenaltyWarps * sizeof(double), stream,
                   Global<const T>(static_cast<const T*>(call.weight), call.rows * call.dim), call.dim,
                   CountArray{call.counts, call.rows}, Global<const int64_t>(call.unique, call.entries),
                   Global<const int64_t>(call.unique_count, 1), Global<double>(partials, plan.blocks));
        });
    });
    launch("penalty_total", penalty_total, Grid{1}, 32, 0, stream, Global<const double>(partials, plan.blocks),
           plan.blocks, call.coeff / 2, Global<float>(call.penalty, 1));
}

}  // namespace din_kernels::cuda
