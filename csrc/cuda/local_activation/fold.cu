#include "local_activation/fold.h"

#include "common/launch.cuh"
#include "common/typed.cuh"
#include "local_activation/products.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/prepare.h"

namespace din_kernels::cuda {
namespace {

constexpr int kThreads = 128;  // where no shared memory per candidate limits them

// Candidates of a block: a warp's products have 16 rows.
__device__ inline int candidates_per_block() { return int(blockDim.x) / 32 * kRowsPerWarp; }

// W1 [H1, columns.total], padded with zeros.
struct FirstWeight {
    FeatureColumns columns;
    TypedArray weight;
    int width, dim;

    __device__ bool inside(int h, int d) const { return h < width && d < dim; }
    __device__ float at(int h, int64_t column) const { return typed_at(weight, h * columns.total + column); }
    // (Wk - Wd)[h, d]
    __device__ float keys(int h, int d) const {
        if (!inside(h, d)) return 0.0f;
        const float key = at(h, columns.keys + d);
        return columns.has_difference ? key - at(h, columns.difference + d) : key;
    }
    __device__ float products(int h, int d) const { return inside(h, d) ? at(h, columns.products + d) : 0.0f; }
};

FirstWeight first_weight(const LocalActivation& call, const UnitSizes& sizes) {
    return {feature_columns(call), call.layers[0].weight, sizes.width[0], sizes.dim};
}

// A warp's 16 rows, narrowed, from value(row, column); zeros up to the product's depth.
template <typename Math, typename Value>
__device__ void load_rows(const Shared<typename Math::Storage>& tile, const UnitSizes& sizes, const Value& value) {
    using S = typename Math::Storage;
    const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * kRowsPerWarp, columns = sizes.dim_padded;
    for (int at = lane; at < kRowsPerWarp * columns; at += 32) {
        const int row = first + at / columns, column = at % columns;
        tile.store(row * sizes.stride[0] + column, column < sizes.dim ? narrow<S>(value(row, column)) : S{});
    }
    __syncwarp();
}

// Row h of A_i, and column h of A_i^T, of a block's candidates: with their padding, which meets zeros and must not be
// NaN.
template <typename Math, bool kOuter>
__global__ void fold_candidates(Chunk chunk, UnitSizes sizes, FirstWeight weight, FoldPlan plan,
                                Global<const typename Math::Storage> query,   // [Q, D]
                                Global<const uint32_t> outer,                 // [H1, outer_words]; null but for kOuter
                                Global<typename Math::Storage> matrices,      // [chunk, parts, packed [D, H1]]
                                Global<typename Math::Storage> transposed) {  // [chunk, packed [H1, D]] or null
    using S = typename Math::Storage;
    constexpr int kParts = kOuter && sizeof(S) == 2 ? 2 : 1, kPerWord = int(4 / sizeof(S));  // as in the plan
    const int h = int(blockIdx.y), dim = sizes.dim, stride = sizes.stride[0], lane = int(threadIdx.x) % 32;
    const int first_row = int(threadIdx.x) / 32 * kRowsPerWarp, steps = sizes.steps[0];
    const int padded = sizes.padded[0], dim8 = (dim + 7) / 8 * 8;
    const int columns = dim8 > sizes.dim_padded ? dim8 : sizes.dim_padded;
    const PackedOrder order{padded / 8, steps}, transposed_order{dim8 / 8, (padded + Math::kDepth - 1) / Math::kDepth};
    const int64_t first = chunk.begin + int64_t(blockIdx.x) * candidates_per_block();
    const Shared<S> tile(0, candidates_per_block() * stride);
    load_rows<Math>(tile, sizes, [&](int row, int column) {
        return first + row < chunk.end ? widen(query[(first + row) * dim + column]) : 0.0f;
    });
    // Column d, with what the queries of the lane's two rows add.
    const auto store = [&](int d, const float (&by_query)[2]) {
        const float key = weight.keys(h, d);
        const int64_t to = Math::position(d, h, order), to_transposed = Math::position(h, d, transposed_order);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + lane / 4 + 8 * half;
            const int64_t i = first + row - chunk.begin;
            if (first + row >= chunk.end) continue;
            const float sum = key + by_query[half];
            const S value = Math::rounded(sum);
            if (h < padded && d < sizes.dim_padded) {
                matrices.store(i * kParts * plan.words * kPerWord + to, value);
                if (kParts == 2)
                    matrices.store((i * kParts + 1) * plan.words * kPerWord + to, Math::rounded(sum - widen(value)));
            }
            if (transposed && d < dim8) transposed.store(i * plan.transposed_words * kPerWord + to_transposed, value);
        }
    };
    if constexpr (kOuter)
        for_groups(dim8 / 8, [&](int group, auto count) {
            constexpr int kCount = decltype(count)::value;
            Sums<kCount> sums = {};
            if (h < sizes.width[0])
                Math::multiply(sums, tile, first_row * stride, stride, steps,
                               outer.part(h * plan.outer_words, plan.outer_words), group);
#pragma unroll
            for (int t = 0; t < kCount; ++t)
#pragma unroll
                for (int c = 0; c < 2; ++c) store((group + t) * 8 + 2 * (lane % 4) + c, {sums[t][c], sums[t][2 + c]});
        });
    for (int d = (kOuter ? dim8 : 0) + 2 * (lane % 4); d < columns; d += 8)
        for (int c = 0; c < 2; ++c) {
            const bool there = !kOuter && d + c < dim;
            const float product = there ? weight.products(h, d + c) : 0.0f;
            const int at = (first_row + lane / 4) * stride + d + c;
            store(d + c,
                  {there ? product * widen(tile[at]) : 0.0f, there ? product * widen(tile[at + 8 * stride]) : 0.0f});
        }
}

// shares[share] (+)= sums over a share of the chunk's candidates of dA_i, and of dA_i diag(q_i) but for outer features.
template <typename S>
__global__ void sum_folded(Chunk chunk, int dim, int64_t cells, bool outer, Global<const S> query,
                           Global<const float> gradients,  // [chunk, cells]
                           Global<float> shares) {         // [kFoldShares, 2, cells]
    const int64_t cell = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, share = blockIdx.y;
    if (cell >= cells) return;
    const int64_t to = share * 2 * cells + cell, each = (chunk.end - chunk.begin + kFoldShares - 1) / kFoldShares;
    const int64_t begin = chunk.begin + share * each, end = begin + each < chunk.end ? begin + each : chunk.end;
    float keys = chunk.begin ? shares[to] : 0.0f, products = chunk.begin ? shares[to + cells] : 0.0f;
    for (int64_t i = begin; i < end; ++i) {
        const float gradient = gradients[(i - chunk.begin) * cells + cell];
        keys += gradient;
        if (!outer) products = fmaf(gradient, widen(query[i * dim + cell % dim]), products);
    }
    shares.store(to, keys), shares.store(to + cells, products);
}

// dq_i = sum_h Wp[h] * dA_i[h]
__global__ void product_query_gradient(Chunk chunk, FirstWeight weight, int64_t cells, Global<const float> gradients,
                                       Global<float> query_gradient) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, i = chunk.begin + at / weight.dim;
    if (i >= chunk.end) return;
    const int d = int(at % weight.dim);
    float sum = 0.0f;
    for (int h = 0; h < weight.width; ++h)
        sum = fmaf(weight.products(h, d), gradients[(i - chunk.begin) * cells + h * weight.dim + d], sum);
    query_gradient.store(i * weight.dim + d, sum);
}

// dq_ij = sum_h <Wo[h, j], dA_i[h]> of a block's candidates and 40 j.
template <typename Math>
__global__ void outer_query_gradient(Chunk chunk, UnitSizes sizes, FoldPlan plan,
                                     Global<const uint32_t> outer_transposed, Global<const float> gradients,
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
                           outer_transposed.part(h * plan.outer_words, plan.outer_words), first_tile + group);
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

// dWo[h, j, d] += sum_i q_ij dA_i[h, d] of one h and 16 j; a warp per 40 d.
template <typename Math>
__global__ void outer_weight_gradient(Chunk chunk, UnitSizes sizes, FoldPlan plan, FeatureColumns columns,
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
                const int64_t to = h * columns.total + columns.products + int64_t(first_j + j) * dim + d;
                grad_weight.store(to, grad_weight[to] + sums[t][r]);
            }
    }
}

}  // namespace

void prepare_fold(const LocalActivation& call, const UnitSizes& sizes, const FoldPlan& plan, Stream stream) {
    if (call.features != Features::kOuter) return;
    const FeatureColumns columns = feature_columns(call);
    const auto job = [&](bool from_key, int64_t offset) {
        // Wo[h] is [j, d], row-major, and lies in row h of W1.
        return PackJob{{call.layers[0].weight, call.dim, call.dim, call.dim, call.dim, columns.products, 0, 0.0f,
                        !from_key, sizes.width[0], columns.total},
                       carved<uint32_t>(call.workspace, offset)};
    };
    std::vector<PackJob> jobs = {job(false, plan.outer)};
    if (plan.transposed_words) jobs.push_back(job(true, plan.outer_transposed));
    pack_matrices(call, sizes, jobs, stream);
}

void fold(const LocalActivation& call, const UnitSizes& sizes, const UnitWorkspace& work, const FoldPlan& plan,
          Chunk chunk, Stream stream) {
    with_math(call, [&](auto math) {
        using Math = decltype(math);
        using S = typename Math::Storage;
        const auto packed = [&](int64_t words, int64_t offset) {
            return Global<S>(words ? carved<S>(call.workspace, offset) : nullptr,
                             plan.chunk * words * int64_t(4 / sizeof(S)));
        };
        const int candidates = plan.warps * kRowsPerWarp;
        const auto launch_as = [&](auto outer) {
            launch("fold_candidates", fold_candidates<Math, outer()>,
                   Grid{ceil_div(chunk.end - chunk.begin, candidates), round_up(sizes.padded[0], sizes.depth)},
                   32 * plan.warps, size_t(candidates * sizes.stride[0]) * sizeof(S), stream, chunk, sizes,
                   first_weight(call, sizes), plan, Global<const S>(query_of<S>(call, work), call.queries * call.dim),
                   Global<const uint32_t>(outer() ? carved<uint32_t>(call.workspace, plan.outer) : nullptr,
                                          sizes.width[0] * plan.outer_words),
                   packed(plan.parts * plan.words, plan.matrices), packed(plan.transposed_words, plan.transposed));
        };
        if (call.features == Features::kOuter)
            launch_as(std::true_type{});
        else
            launch_as(std::false_type{});
    });
}

void unfold(const LocalActivation& call, const BackwardPlan& backward, Chunk chunk, Stream stream) {
    const FoldPlan& plan = backward.fold;
    const UnitSizes& sizes = backward.sizes;
    const bool outer = call.features == Features::kOuter;
    const int64_t candidates = chunk.end - chunk.begin;
    const auto floats = [&](int64_t offset, int64_t size) {
        return Global<float>(carved<float>(call.workspace, offset), size);
    };
    const Global<const float> gradients(carved<float>(call.workspace, plan.gradients), plan.chunk * plan.cells);
    const Global<float> query_gradient = floats(backward.query_gradient, call.queries * call.dim);
    with_math(call, [&](auto math) {
        using Math = decltype(math);
        using S = typename Math::Storage;
        const Global<const S> query(query_of<S>(call, backward.work), call.queries * call.dim);
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
               Global<const uint32_t>(carved<uint32_t>(call.workspace, plan.outer_transposed),
                                      sizes.width[0] * plan.outer_words),
               gradients, query_gradient);
        launch("outer_weight_gradient", outer_weight_gradient<Math>, Grid{sizes.width[0], ceil_div(call.dim, 16)},
               kThreads, size_t(kRowsPerWarp * (16 + sizes.stride[0])) * sizeof(S), stream, chunk, sizes, plan,
               feature_columns(call), query, gradients,
               Global<float>(call.layers[0].grad_weight, sizes.width[0] * feature_columns(call).total));
    });
}

}  // namespace din_kernels::cuda
