// The gradient of A_i taken apart into those of the weights and of the queries; formulas in fold.h.
#include "common/launch.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/fold.cuh"
#include "local_activation/fold.h"

namespace din_kernels::cuda {
namespace {

constexpr int kThreads = 128;  // where no shared memory per candidate limits them

// shares[share] (+)= sums over a share of the chunk's candidates of dA_i and, but for outer features, of dA_i
// diag(q_i).
template <typename S>
__global__ void sum_folded(Chunk chunk, int dim, int64_t cells, bool outer, Global<const S> query,
                           Global<const float> gradients,  // [chunk, cells]
                           Global<float> shares) {         // [kFoldShares, 2, cells]
    const int64_t cell = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, share = blockIdx.y;
    if (cell >= cells) return;
    const int64_t to = share * 2 * cells + cell, each = (chunk.end - chunk.begin + kFoldShares - 1) / kFoldShares;
    const int64_t begin = chunk.begin + share * each, end = begin + each < chunk.end ? begin + each : chunk.end;
    float of_k = chunk.begin ? shares[to] : 0.0f, of_qk = chunk.begin ? shares[to + cells] : 0.0f;
    for (int64_t i = begin; i < end; ++i) {
        const float gradient = gradients[(i - chunk.begin) * cells + cell];
        of_k += gradient;
        if (!outer) of_qk = fmaf(gradient, widen(query[i * dim + cell % dim]), of_qk);
    }
    shares.store(to, of_k), shares.store(to + cells, of_qk);
}

// dq_i = sum_h Wp[h] * dA_i[h]
__global__ void product_query_gradient(Chunk chunk, FirstWeight weight, int64_t cells, Global<const float> gradients,
                                       Global<float> query_gradient) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, i = chunk.begin + at / weight.dim;
    if (i >= chunk.end) return;
    const int d = int(at % weight.dim);
    float sum = 0.0f;
    for (int h = 0; h < weight.width; ++h)
        sum = fmaf(weight.weight_qk(h, d), gradients[(i - chunk.begin) * cells + h * weight.dim + d], sum);
    query_gradient.store(i * weight.dim + d, sum);
}

// dq_ij = sum_h <Wo[h, j], dA_i[h]>: block (x, y) takes the candidates x and 40 columns j.
template <typename Math>
__global__ void outer_query_gradient(Chunk chunk, Sizes sizes, FoldPlan plan,
                                     Global<const uint32_t> weight_outer_transposed, Global<const float> gradients,
                                     Global<float> query_gradient) {
    using S = typename Math::Storage;
    const int dim = sizes.dim, stride = sizes.stride[0], lane = int(threadIdx.x) % 32;
    const int first_row = int(threadIdx.x) / 32 * kRowsPerWarp, first_tile = int(blockIdx.y) * kTiles;
    const int left = (dim + 7) / 8 - first_tile;
    const int64_t first = int64_t(blockIdx.x) * candidates_per_block(), candidates = chunk.end - chunk.begin;
    const Shared<S> tile(0, candidates_per_block() * stride);
    for_groups(left < kTiles ? left : kTiles, [&](int group, auto count) {
        constexpr int kCount = decltype(count)::value;
        Sums<kCount> sums = {};
        for (int h = 0; h < sizes.width[0]; ++h) {
            load_rows<Math>(tile, sizes, [&](int row, int column) {
                return first + row < candidates ? gradients[(first + row) * plan.cells + int64_t(h) * dim + column]
                                                : 0.0f;
            });
            Math::multiply(sums, tile, first_row * stride, stride, sizes.steps[0],
                           weight_outer_transposed.part(h * plan.outer_words, plan.outer_words), first_tile + group);
            __syncwarp();
        }
        for (int t = 0; t < kCount; ++t)
            for (int r = 0; r < 4; ++r) {
                const int64_t i = first + first_row + lane / 4 + 8 * (r / 2);
                const int j = (first_tile + group + t) * 8 + 2 * (lane % 4) + r % 2;
                if (i < candidates && j < dim) query_gradient.store((chunk.begin + i) * dim + j, sums[t][r]);
            }
    });
}

// dWo[h, j, d] += sum_i q_ij dA_i[h, d]: block (x, y) takes h = x and 16 columns j, each of its warps 40 columns d.
template <typename Math>
__global__ void outer_weight_gradient(Chunk chunk, Sizes sizes, FoldPlan plan, FeatureColumns columns,
                                      Global<const typename Math::Storage> query, Global<const float> gradients,
                                      Global<float> grad_weight) {  // [H1, columns.total]
    using S = typename Math::Storage;
    const int h = int(blockIdx.x), first_j = int(blockIdx.y) * 16, dim = sizes.dim, stride = sizes.stride[0];
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32,
              width = dim - first_j < 16 ? dim - first_j : 16;
    const Shared<S> left(0, kRowsPerWarp * 16), right(uint32_t(kRowsPerWarp * 16 * sizeof(S)), kRowsPerWarp * stride);
    for (int from = 0; from < dim; from += kThreads / 32 * 8 * kTiles) {
        const RowProduct<S> product{left, right, 16, 0, width, stride, from + warp * 8 * kTiles, dim};
        Sums<kTiles> sums = {};
        for (int64_t first = chunk.begin; first < chunk.end; first += kRowsPerWarp) {
            // 16 candidates' q_ij and dA_i[h].
            for (int at = int(threadIdx.x); at < kRowsPerWarp * 16; at += kThreads) {
                const int64_t i = first + at / 16;
                left.store(at, i < chunk.end && at % 16 < width ? query[i * dim + first_j + at % 16] : S{});
            }
            for (int at = int(threadIdx.x); at < kRowsPerWarp * sizes.dim_padded; at += kThreads) {
                const int row = at / sizes.dim_padded, d = at % sizes.dim_padded;
                const int64_t i = first + row - chunk.begin;
                const bool there = first + row < chunk.end && d < dim;
                right.store(row * stride + d,
                            narrow<S>(there ? gradients[i * plan.cells + int64_t(h) * dim + d] : 0.0f));
            }
            __syncthreads();
            if (product.column < dim) Math::multiply_rows(sums, product, kRowsPerWarp);
            __syncthreads();
        }
        for (int t = 0; t < kTiles; ++t)
            for (int r = 0; r < 4; ++r) {
                const int j = lane / 4 + 8 * (r / 2), d = product.column + 8 * t + 2 * (lane % 4) + r % 2;
                if (j >= width || d >= dim) continue;
                const int64_t to = h * columns.total + columns.weight_outer + int64_t(first_j + j) * dim + d;
                grad_weight.store(to, grad_weight[to] + sums[t][r]);
            }
    }
}

}  // namespace

void unfold(const LocalActivation& call, const BackwardPlan& backward, Chunk chunk, Stream stream) {
    const FoldPlan& plan = backward.fold;
    const Sizes& sizes = backward.sizes;
    const bool outer = call.features == Features::kOuter;
    const FeatureColumns columns = feature_columns(call);
    const int64_t candidates = chunk.end - chunk.begin;
    const auto floats = [&](int64_t offset, int64_t size) { return carved_array<float>(call.workspace, offset, size); };
    const auto gradients = carved_array<const float>(call.workspace, plan.gradients, plan.chunk * plan.cells);
    const auto query_gradient = floats(backward.query_gradient, call.queries * call.dim);
    with_math(call, [&](auto math) {
        using Math = decltype(math);
        using S = typename Math::Storage;
        const auto query = query_of<S>(call, backward.work);
        launch("sum_folded", sum_folded<S>, Grid{ceil_div(plan.cells, 256), kFoldShares}, 256, 0, stream, chunk,
               sizes.dim, plan.cells, outer, query, gradients, floats(plan.shares, kFoldShares * 2 * plan.cells));
        if (!outer) {
            launch("product_query_gradient", product_query_gradient, Grid{ceil_div(candidates * call.dim, 256)}, 256, 0,
                   stream, chunk, first_weight(call, sizes), plan.cells, gradients, query_gradient);
            return;
        }
        const int per_block = plan.warps * kRowsPerWarp;
        launch("outer_query_gradient", outer_query_gradient<Math>,
               Grid{ceil_div(candidates, per_block), ceil_div(call.dim, 8 * kTiles)}, 32 * plan.warps,
               size_t(per_block * sizes.stride[0]) * sizeof(S), stream, chunk, sizes, plan,
               carved_array<const uint32_t>(call.workspace, plan.weight_outer_transposed,
                                            sizes.width[0] * plan.outer_words),
               gradients, query_gradient);
        launch("outer_weight_gradient", outer_weight_gradient<Math>, Grid{sizes.width[0], ceil_div(call.dim, 16)},
               kThreads, size_t(kRowsPerWarp * (16 + sizes.stride[0])) * sizeof(S), stream, chunk, sizes, plan, columns,
               query, gradients, Global<float>(fp32(call.layers[0].grad_weight), sizes.width[0] * columns.total));
    });
}

}  // namespace din_kernels::cuda
