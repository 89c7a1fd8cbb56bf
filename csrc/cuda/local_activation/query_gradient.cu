#include "local_activation/query_gradient.h"

#include "common/launch.cuh"
#include "local_activation/dispatch.h"

namespace din_kernels::cuda {
namespace {

template <typename S>
struct QueryCall {
    Sizes sizes;
    int64_t queries;
    int dc_stride, dim8;
    Global<const S> query;                       // [Q, D]
    Global<const uint32_t> weight_q_transposed;  // packed [H1, D]: (Wq + Wd)^T
    Global<const float> constants_gradient;      // [Q, padded H1]: dc
    Global<const float> query_gradient;          // [Q, D]: the part of dq that comes by q * k or A_i
    Global<S> grad_query;                        // [Q, D] or null
    Global<float> weight_q_gradients;            // [blocks, padded H1, D]
};

// 16 candidates of a warp: rows of dc and of q in shared memory.
template <typename Math>
struct CandidateTile {
    using S = typename Math::Storage;
    const QueryCall<S>& call;
    int steps;  // of a product with dc
    Shared<S> dc, q;

    __device__ explicit CandidateTile(const QueryCall<S>& call)
        : call(call),
          steps((call.sizes.padded[0] + Math::kDepth - 1) / Math::kDepth),
          dc(0, kRowsPerWarp * call.dc_stride),
          q(uint32_t(kRowsPerWarp * call.dc_stride * int(sizeof(S))), kRowsPerWarp * call.sizes.stride[0]) {}

    // Zeros stand where no candidate and no column is.
    __device__ void load(int64_t first) const {
        const int lane = int(threadIdx.x) % 32, columns = call.sizes.padded[0], deep = steps * Math::kDepth;
        for (int at = lane; at < kRowsPerWarp * deep; at += 32) {
            const int64_t i = first + at / deep;
            const bool there = i < call.queries && at % deep < columns;
            dc.store(at / deep * call.dc_stride + at % deep,
                     narrow<S>(there ? call.constants_gradient[i * columns + at % deep] : 0.0f));
        }
        const int dim = call.sizes.dim, dim_padded = call.sizes.dim_padded;
        for (int at = lane; at < kRowsPerWarp * dim_padded; at += 32) {
            const int64_t i = first + at / dim_padded;
            const int column = at % dim_padded;
            q.store(at / dim_padded * call.sizes.stride[0] + column,
                    i < call.queries && column < dim ? call.query[i * dim + column] : S{});
        }
        __syncwarp();
    }

    // grad q_i = dq_i + (Wq + Wd)^T dc_i
    __device__ void write_query(int64_t first) const {
        const int lane = int(threadIdx.x) % 32, dim = call.sizes.dim;
        for_groups(call.dim8 / 8, [&](int group, auto count) {
            constexpr int kCount = decltype(count)::value;
            Sums<kCount> sums = {};
            Math::multiply(sums, dc, 0, call.dc_stride, steps, call.weight_q_transposed, group);
            for (int t = 0; t < kCount; ++t)
                for (int r = 0; r < 4; ++r) {
                    const int64_t i = first + lane / 4 + 8 * (r / 2);
                    const int d = (group + t) * 8 + 2 * (lane % 4) + r % 2;
                    if (i < call.queries && d < dim)
                        call.grad_query.store(i * dim + d, narrow<S>(sums[t][r] + call.query_gradient[i * dim + d]));
                }
        });
    }

    // The block's part of the gradient of weight_q, from `begin` on, += dc^T q.
    __device__ void add_weight(int64_t begin) const {
        const int lane = int(threadIdx.x) % 32, columns = call.sizes.padded[0], dim = call.sizes.dim;
        RowProduct<S> product{dc, q, call.dc_stride, 0, columns, call.sizes.stride[0], 0, dim};
        for (product.n = 0; product.n < columns; product.n += 16)
            for_groups(call.dim8 / 8, [&](int group, auto count) {
                constexpr int kCount = decltype(count)::value;
                Sums<kCount> sums = {};
                product.column = 8 * group;
                Math::multiply_rows(sums, product, kRowsPerWarp);
                for (int t = 0; t < kCount; ++t)
                    for (int r = 0; r < 4; ++r) {
                        const int n = product.n + lane / 4 + 8 * (r / 2);
                        const int d = product.column + 8 * t + 2 * (lane % 4) + r % 2;
                        if (n >= columns || d >= dim) continue;
                        const int64_t to = begin + int64_t(n) * dim + d;
                        call.weight_q_gradients.store(to, call.weight_q_gradients[to] + sums[t][r]);
                    }
            });
        __syncwarp();
    }
};

// A warp per block, 16 candidates at a time.
template <typename Math>
__global__ void query_gradients(QueryCall<typename Math::Storage> call) {
    const int64_t cells = int64_t(call.sizes.padded[0]) * call.sizes.dim, begin = int64_t(blockIdx.x) * cells;
    const CandidateTile<Math> tile(call);
    for (int64_t at = threadIdx.x; at < cells; at += 32) call.weight_q_gradients.store(begin + at, 0.0f);
    __syncwarp();
    for (int64_t first = int64_t(blockIdx.x) * kRowsPerWarp; first < call.queries;
         first += int64_t(gridDim.x) * kRowsPerWarp) {
        tile.load(first);
        if (call.grad_query) tile.write_query(first);
        tile.add_weight(begin);
    }
}

}  // namespace

void finish_queries(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    const Sizes& sizes = plan.sizes;
    const int64_t cells = call.queries * call.dim;
    with_math(call, [&](auto math) {
        using Math = decltype(math);
        using S = typename Math::Storage;
        const QueryCall<S> parameters{
            sizes,
            call.queries,
            plan.dz_stride,
            plan.dim8,
            query_of<S>(call, plan.work),
            packed_array(call, sizes, plan.transposed.weight_q, sizes.padded[0], sizes.dim),
            carved_array<const float>(call.workspace, plan.constants_gradient, call.queries * sizes.padded[0]),
            carved_array<const float>(call.workspace, plan.query_gradient, cells),
            Global<S>(static_cast<S*>(call.grad_query.values[0]), cells),
            carved_array<float>(call.workspace, plan.weight_q_gradients,
                                plan.candidate_blocks * int64_t(sizes.padded[0]) * sizes.dim)};
        launch("query_gradients", query_gradients<Math>, Grid{plan.candidate_blocks}, 32,
               size_t(kRowsPerWarp * (plan.dz_stride + sizes.stride[0]) * sizes.element_bytes), stream, parameters);
    });
}

}  // namespace din_kernels::cuda
