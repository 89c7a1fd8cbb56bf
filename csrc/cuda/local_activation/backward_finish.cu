#include "local_activation/backward_finish.h"

#include "common/block_scan.cuh"
#include "common/launch.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/prepare.h"
#include "local_activation/tile_loader.cuh"

namespace din_kernels::cuda {
namespace {

constexpr int kThreads = 128;

// dots[i] = <g_i, o_i> + sum_t w_it gw_it: sum_t w_it dw_it of the softmax. A warp per candidate.
template <typename S>
__global__ void softmax_dots(int64_t queries, int dim, Global<const S> grad_pooled, Global<const S> pooled,
                             Global<const int64_t> first, Global<const int64_t> pair_begin,
                             Global<const float> pair_weights, Global<const float> grad_pair_weights,
                             Global<float> dots) {
    const int lane = int(threadIdx.x) % 32;
    const int64_t i = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    if (i >= queries) return;
    // Two sums, each in the order of dw in the backward pass: of a history of one behaviour, dw - dot is exactly 0.
    float dot = 0.0f, of_weights = 0.0f;
    for (int d = lane; d < dim; d += 32) dot = fmaf(widen(grad_pooled[i * dim + d]), widen(pooled[i * dim + d]), dot);
    if (grad_pair_weights)
        for (int64_t t = lane; t < first[i + 1] - first[i]; t += 32)
            of_weights += pair_weights[pair_begin[i] + t] * grad_pair_weights[pair_begin[i] + t];
    dot = warp_sum(dot) + warp_sum(of_weights);
    if (lane == 0) dots.store(i, dot);
}

// mean and rstd of a layer, from the statistics that forward returned.
__global__ void write_batch_params(Global<const float> mean, Global<const float> var, int width, float eps,
                                   Global<float> param_mean, Global<float> param_rstd) {
    const int channel = int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x);
    if (channel >= width) return;
    param_mean.store(channel, mean[channel]);
    param_rstd.store(channel, 1.0f / sqrtf(var[channel] + eps));
}

// A warp per channel.
__global__ void mean_columns(Global<const float> columns, int64_t blocks, int64_t block_size, int first, int padded_sum,
                             Global<const int64_t> pairs, Global<float> statistics) {
    const int channel = int(blockIdx.x);
    for (int which = 0; which < 2; ++which) {
        float sum = 0.0f;
        for (int64_t block = threadIdx.x; block < blocks; block += 32)
            sum += columns[block * block_size + (2 + which) * padded_sum + first + channel];
        sum = warp_sum(sum);
        if (threadIdx.x == 0)
            statistics.store(which * padded_sum + first + channel, pairs[0] > 0 ? sum / float(pairs[0]) : 0.0f);
    }
}

// constants_gradient [Q, columns] and query_gradient [.., rest], see BackwardCall.
__global__ void join_query_partials(Slots slots, int columns, int rest, bool folded, int rows, int64_t blocks,
                                    Global<const float> partials, Global<float> constants_gradient,
                                    Global<float> query_gradient) {
    const int lane = int(threadIdx.x) % 32, width = columns + rest;
    const int64_t i = slots.begin + int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    if (i >= slots.end) return;
    const BlocksOf in(slots, i, rows, blocks);
    if (in.one()) return;
    const int64_t second = (folded ? i - slots.begin : i) * rest;
    for (int at = lane; at < width; at += 32) {
        float total = 0.0f;
        for (int64_t block = in.from; block <= in.to; ++block) total += partials[in.partial(block) * width + at];
        if (at < columns)
            constants_gradient.store(i * columns + at, total);
        else
            query_gradient.store(second + at - columns, total);
    }
}

// grad q_i = dq_i + (Wq + Wd)^T dc_i, and the block's part of the gradient of Wq, sum_i dc_i q_i^T. A warp per block,
// 16 candidates at a time.
template <typename Math>
__global__ void query_gradients(Global<const typename Math::Storage> query, int64_t queries, UnitSizes sizes,
                                int dz_stride, int dim8, Global<const uint32_t> transposed,
                                Global<const float> constants_gradient, Global<const float> query_gradient,
                                Global<typename Math::Storage> grad_query, Global<float> first_query) {
    using S = typename Math::Storage;
    const int lane = int(threadIdx.x) % 32, columns = sizes.padded[0], dim = sizes.dim, stride = sizes.stride[0];
    const int steps = (columns + Math::kDepth - 1) / Math::kDepth, deep = steps * Math::kDepth;
    const Shared<S> dc(0, kRowsPerWarp * dz_stride);
    const Shared<S> q(uint32_t(kRowsPerWarp * dz_stride * int(sizeof(S))), kRowsPerWarp * stride);
    const int64_t first_gradient = int64_t(blockIdx.x) * columns * dim;
    for (int64_t at = lane; at < int64_t(columns) * dim; at += 32) first_query.store(first_gradient + at, 0.0f);
    __syncwarp();
    for (int64_t first = int64_t(blockIdx.x) * kRowsPerWarp; first < queries;
         first += int64_t(gridDim.x) * kRowsPerWarp) {
        for (int at = lane; at < kRowsPerWarp * deep; at += 32) {
            const int64_t i = first + at / deep;
            const bool there = i < queries && at % deep < columns;
            dc.store(at / deep * dz_stride + at % deep,
                     narrow<S>(there ? constants_gradient[i * columns + at % deep] : 0.0f));
        }
        for (int at = lane; at < kRowsPerWarp * sizes.dim_padded; at += 32) {
            const int64_t i = first + at / sizes.dim_padded;
            const int column = at % sizes.dim_padded;
            q.store(at / sizes.dim_padded * stride + column,
                    i < queries && column < dim ? query[i * dim + column] : S{});
        }
        __syncwarp();
        if (grad_query)
            for_groups(dim8 / 8, [&](int group, auto count) {
                constexpr int kCount = decltype(count)::value;
                Sums<kCount> sums = {};
                Math::multiply(sums, dc, 0, dz_stride, steps, transposed, group);
                for (int t = 0; t < kCount; ++t)
                    for (int r = 0; r < 4; ++r) {
                        const int64_t i = first + lane / 4 + 8 * (r / 2);
                        const int d = (group + t) * 8 + 2 * (lane % 4) + r % 2;
                        if (i < queries && d < dim)
                            grad_query.store(i * dim + d, narrow<S>(sums[t][r] + query_gradient[i * dim + d]));
                    }
            });
        RowProduct<S> product{dc, q, dz_stride, 0, columns, stride, 0, dim};
        for (product.n = 0; product.n < columns; product.n += 16)
            for_groups(dim8 / 8, [&](int group, auto count) {
                constexpr int kCount = decltype(count)::value;
                Sums<kCount> sums = {};
                product.column = 8 * group;
                Math::multiply_rows(sums, product, kRowsPerWarp);
                for (int t = 0; t < kCount; ++t)
                    for (int r = 0; r < 4; ++r) {
                        const int n = product.n + lane / 4 + 8 * (r / 2);
                        const int d = product.column + 8 * t + 2 * (lane % 4) + r % 2;
                        if (n >= columns || d >= dim) continue;
                        const int64_t to = first_gradient + int64_t(n) * dim + d;
                        first_query.store(to, first_query[to] + sums[t][r]);
                    }
            });
        __syncwarp();
    }
}

// out[at] = sum of the blocks' parts[block, at]
__global__ void sum_blocks(Global<const float> parts, int64_t blocks, int64_t size, Global<float> out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size) return;
    float sum = 0.0f;
    for (int64_t block = 0; block < blocks; ++block) sum += parts[block * size + at];
    out.store(at, sum);
}

// Gradient of the first layer's weight [H1, columns.total]. With keys = d(Wk - Wd) and query = d(Wq + Wd), which share
// the difference's columns: dWk = keys, dWq = query, dWd = query - keys.
__global__ void write_first_gradient(FeatureColumns columns, int width, int padded, int dim, int stride,
                                     Global<const float> gradient,     // [2, padded, stride]
                                     Global<const float> first_query,  // [padded, D]
                                     Global<float> out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= width * columns.total) return;
    const int64_t n = at / columns.total, column = at % columns.total;
    const int64_t from = n * stride + column % dim, from_query = n * dim + column % dim;
    float value = 0.0f;
    if (columns.outer && column >= columns.products) return;  // dWo is there already
    if (column < columns.keys)
        value = first_query[from_query];
    else if (column < columns.keys + dim)
        value = gradient[from];
    else if (column >= columns.products)
        value = gradient[int64_t(padded) * stride + from];
    else
        value = first_query[from_query] - gradient[from];
    out.store(at, value);
}

// out [rows, columns] from an array whose rows are `stride` apart.
__global__ void copy_rows(Global<const float> from, int stride, int64_t rows, int64_t columns, Global<float> out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < rows * columns) out.store(at, from[at / columns * stride + at % columns]);
}

// Writes a gradient where it is asked for.
struct Writer {
    Stream stream;
    void operator()(const float* from, int stride, int64_t rows, int64_t columns, float* out) const {
        if (out == nullptr || rows * columns == 0) return;
        launch("copy_rows", copy_rows, Grid{ceil_div(rows * columns, 256)}, 256, 0, stream,
               Global<const float>(from, (rows - 1) * stride + columns), stride, rows, columns,
               Global<float>(out, rows * columns));
    }
};

}  // namespace

void prepare_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    const UnitSizes& sizes = plan.sizes;
    const FeatureColumns columns = feature_columns(call);
    const float sign = columns.has_difference ? 1.0f : 0.0f;
    const auto of_first = [&](int64_t block, float sign_of_difference, int64_t offset) {
        return PackJob{{call.layers[0].weight, columns.total, sizes.width[0], call.dim, sizes.padded[0], block,
                        columns.difference, sign_of_difference, true},
                       carved<uint32_t>(call.workspace, offset)};
    };
    std::vector<PackJob> jobs = {of_first(columns.query, sign, plan.query_transposed)};
    if (!sizes.folded) {
        jobs.push_back(of_first(columns.keys, -sign, plan.keys_transposed));
        jobs.push_back(of_first(columns.products, 0.0f, plan.products_transposed));
    }
    for (int l = 1; l < sizes.layers; ++l)
        jobs.push_back({{call.layers[l].weight, sizes.width[l - 1], sizes.width[l], sizes.width[l - 1], sizes.padded[l],
                         0, 0, 0.0f, true},
                        carved<uint32_t>(call.workspace, plan.layer_transposed[l])});
    pack_matrices(call, sizes, jobs, stream);
    if (call.normalize == Normalize::kSoftmax)
        with_math(call, [&](auto math) {
            using S = typename decltype(math)::Storage;
            const int64_t cells = call.queries * call.dim;
            launch("softmax_dots", softmax_dots<S>, Grid{ceil_div(call.queries, kThreads / 32)}, kThreads, 0, stream,
                   call.queries, int(call.dim), Global<const S>(static_cast<const S*>(call.grad_pooled), cells),
                   Global<const S>(static_cast<const S*>(call.pooled), cells),
                   Global<const int64_t>(carved<int64_t>(call.workspace, plan.work.pair_first), call.queries + 1),
                   Global<const int64_t>(call.pair_begin, call.queries),
                   Global<const float>(call.pair_weights, call.total_pairs),
                   Global<const float>(call.grad_pair_weights, call.total_pairs),
                   Global<float>(carved<float>(call.workspace, plan.dots), call.queries));
        });
    if (!call.dice_training) return;
    int hidden_sum = 0, before = 0;
    for (int l = 0; l < sizes.layers; ++l) hidden_sum += sizes.width[l];
    float* const params = carved<float>(call.workspace, plan.work.params);
    for (int l = 0; l < sizes.layers; before += sizes.width[l++])
        launch("write_batch_params", write_batch_params, Grid{ceil_div(sizes.width[l], 128)}, 128, 0, stream,
               Global<const float>(call.statistics + before, sizes.width[l]),
               Global<const float>(call.statistics + hidden_sum + before, sizes.width[l]), sizes.width[l],
               float(call.layers[l].eps),
               Global<float>(params + 2 * sizes.padded_sum + sizes.padded_first[l], sizes.width[l]),
               Global<float>(params + 3 * sizes.padded_sum + sizes.padded_first[l], sizes.width[l]));
}

void finish_backward_statistics(const LocalActivation& call, const BackwardPlan& plan, int layer, Stream stream) {
    const UnitSizes& sizes = plan.sizes;
    launch("mean_columns", mean_columns, Grid{sizes.padded[layer]}, 32, 0, stream,
           Global<const float>(carved<float>(call.workspace, plan.columns), plan.blocks * plan.columns_size),
           plan.blocks, plan.columns_size, sizes.padded_first[layer], sizes.padded_sum,
           Global<const int64_t>(carved<int64_t>(call.workspace, plan.work.pair_first) + call.queries, 1),
           Global<float>(carved<float>(call.workspace, plan.statistics), 2 * sizes.padded_sum));
}

void join_query_gradients(const LocalActivation& call, const BackwardPlan& plan, Chunk chunk, Stream stream) {
    const bool folded = plan.sizes.folded;
    const int columns = plan.sizes.padded[0], rest = plan.query_width - columns;
    const auto floats = [&](int64_t offset, int64_t size) {
        return Global<float>(carved<float>(call.workspace, offset), size);
    };
    launch("join_query_partials", join_query_partials, Grid{ceil_div(chunk.end - chunk.begin, kThreads / 32)}, kThreads,
           0, stream, slots_of(call, plan.work, chunk), columns, rest, folded, plan.tile.rows, plan.blocks,
           Global<const float>(carved<float>(call.workspace, plan.partials), plan.blocks * 2 * plan.query_width),
           floats(plan.constants_gradient, call.queries * columns),
           folded ? floats(plan.fold.gradients, plan.fold.chunk * rest)
                  : floats(plan.query_gradient, call.queries * rest));
}

void finish_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    const UnitSizes& sizes = plan.sizes;
    const int columns = sizes.padded[0], dim = sizes.dim;
    const auto floats = [&](int64_t offset) { return carved<float>(call.workspace, offset); };
    const int64_t first_query_size = int64_t(columns) * dim;
    with_math(call, [&](auto math) {
        using Math = decltype(math);
        using S = typename Math::Storage;
        launch("query_gradients", query_gradients<Math>, Grid{plan.query_blocks}, 32,
               size_t(kRowsPerWarp * (plan.dz_stride + sizes.stride[0]) * sizes.element_bytes), stream,
               Global<const S>(query_of<S>(call, plan.work), call.queries * dim), call.queries, sizes, plan.dz_stride,
               plan.dim8,
               Global<const uint32_t>(carved<uint32_t>(call.workspace, plan.query_transposed),
                                      packed_sizes(sizes, columns, dim).words),
               Global<const float>(floats(plan.constants_gradient), call.queries * columns),
               Global<const float>(floats(plan.query_gradient), call.queries * dim),
               Global<S>(static_cast<S*>(call.grad_query), call.queries * dim),
               Global<float>(floats(plan.first_query_gradients), plan.query_blocks * first_query_size));
    });
    const auto sum = [&](int64_t parts, int64_t blocks, int64_t size, int64_t to) {
        launch("sum_blocks", sum_blocks, Grid{ceil_div(size, 256)}, 256, 0, stream,
               Global<const float>(floats(parts), blocks * size), blocks, size, Global<float>(floats(to), size));
    };
    sum(plan.gradients, plan.blocks, plan.gradient_size, plan.gradient_sums);
    sum(plan.columns, plan.blocks, plan.columns_size, plan.columns_sums);
    if (sizes.folded) sum(plan.fold.shares, kFoldShares, 2 * plan.fold.cells, plan.fold.sums);
    sum(plan.first_query_gradients, plan.query_blocks, first_query_size, plan.first_query_sums);

    const FeatureColumns features = feature_columns(call);
    const int first_stride = sizes.folded ? dim : plan.gradient_stride[0];
    launch("write_first_gradient", write_first_gradient, Grid{ceil_div(sizes.width[0] * features.total, 256)}, 256, 0,
           stream, features, sizes.width[0], columns, dim, first_stride,
           Global<const float>(floats(sizes.folded ? plan.fold.sums : plan.gradient_sums),
                               2 * int64_t(columns) * first_stride),
           Global<const float>(floats(plan.first_query_sums), first_query_size),
           Global<float>(call.layers[0].grad_weight, sizes.width[0] * features.total));
    const Writer write{stream};
    const float* const column_sums = floats(plan.columns_sums);
    int hidden_before = 0;
    for (int l = 0; l < sizes.layers; hidden_before += sizes.width[l++]) {
        const UnitLayer& layer = call.layers[l];
        const auto of_channels = [&](int which, float* out) {
            write(column_sums + which * sizes.padded_sum + sizes.padded_first[l], 0, 1, sizes.width[l], out);
        };
        of_channels(0, layer.grad_bias);
        of_channels(1, layer.grad_param);
        of_channels(2, layer.grad_u), of_channels(3, layer.grad_u_u);
        if (l > 0)
            write(floats(plan.gradient_sums) + plan.gradient_layer[l], plan.gradient_stride[l], sizes.width[l],
                  sizes.width[l - 1], layer.grad_weight);
    }
    if (call.hidden == 0) return;
    const UnitLayer& output = call.layers[call.hidden];
    const int last = sizes.layers - 1;
    write(column_sums + 4 * sizes.padded_sum + sizes.padded_first[last], 0, 1, sizes.width[last], output.grad_weight);
    write(column_sums + plan.columns_size - 1, 0, 1, 1, output.grad_bias);
}

}  // namespace din_kernels::cuda
