// Backward of the mini-batch aware penalty: a warp per row of the gradient.
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/table_rows.cuh"
#include "din_kernels/cuda/mba_penalty.h"
#include "mba_penalty/plan.h"

namespace din_kernels::cuda {
namespace {

// out[row], or out[j] of a dense gradient, = grad coeff w_j / n_j. Rows of a sparse gradient behind unique_count are
// zeros.
template <typename T, int kWidth>
__global__ void penalty_gradient(Global<const T> weight, int64_t dim, CountArray counts, Global<const int64_t> unique,
                                 Global<const int64_t> unique_count,
                                 Global<const float> grad,  // [1]
                                 float coeff, bool dense, int64_t out_rows, Global<T> out) {
    const int lane = int(threadIdx.x) % 32;
    const int64_t row = int64_t(blockIdx.x) * kPenaltyWarps + threadIdx.x / 32;
    if (row >= out_rows) return;
    const bool there = row < unique_count[0];
    if (!there && dense) return;
    const int64_t id = there ? unique[row] : 0;
    const float factor = there ? grad[0] * coeff / counts[id] : 0.0f;
    for (int64_t d = lane * kWidth; d < dim; d += 32 * kWidth) {
        Vector<T, kWidth> value{};
        if (there) value = weight.template load<kWidth>(id * dim + d);
        for (int i = 0; i < kWidth; ++i) value.at[i] = narrow<T>(there ? factor * widen(value.at[i]) : 0.0f);
        out.template store<kWidth>((dense ? id : row) * dim + d, value);
    }
}

}  // namespace

void mba_penalty_backward(const MbaPenalty& call, Stream stream) {
    const int64_t rows = call.dense ? call.rows : call.out_rows;
    with_dtype(call.dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width(call.dim, aligned_for<4, T>({call.weight, call.out}), [&](auto width) {
            launch("penalty_gradient", penalty_gradient<T, width()>, Grid{ceil_div(call.out_rows, kPenaltyWarps)},
                   kPenaltyThreads, 0, stream,
                   Global<const T>(static_cast<const T*>(call.weight), call.rows * call.dim), call.dim,
                   CountArray{call.counts, call.rows}, Global<const int64_t>(call.unique, call.entries),
                   Global<const int64_t>(call.unique_count, 1), Global<const float>(call.grad, 1), float(call.coeff),
                   call.dense, call.out_rows, Global<T>(static_cast<T*>(call.out), rows * call.dim));
        });
    });
}

}  // namespace din_kernels::cuda
