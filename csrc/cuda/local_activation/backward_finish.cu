#include "local_activation/backward_finish.h"

#include "common/block_scan.cuh"
#include "common/launch.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/pack.h"
#include "local_activation/query_gradient.h"
#include "local_activation/schedule.cuh"

namespace din_kernels::cuda {
namespace {

constexpr int kThreads = 128;

// statistics [2, padded_sum] = means of du and du u over all pairs. A warp per channel.
__global__ void mean_columns(Global<const float> columns, int64_t blocks, int64_t block_size, int first, int padded_sum,
                             Global<const int64_t> pairs, Global<float> statistics) {
    const int channel = int(blockIdx.x);
    for (int which = 0; which < 2; ++which) {
        float sum = 0.0f;
        for (int64_t block = threadIdx.x; block < blocks; block += 32)
            sum += columns[block * block_size + (kSumOfDu + which) * padded_sum + first + channel];
        sum = warp_sum(sum);
        if (threadIdx.x == 0)
            statistics.store(which * padded_sum + first + channel, pairs[0] > 0 ? sum / float(pairs[0]) : 0.0f);
    }
}

// Joins the partials of candidates to constants_gradient [Q, columns] and query_gradient [.., rest], see BackwardCall.
// A warp per candidate.
__global__ void join_candidate_partials(Slots slots, int columns, int rest, bool folded, int rows, int64_t blocks,
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

// out[at] = sum of the blocks' parts[block, at]
__global__ void sum_blocks(Global<const float> parts, int64_t blocks, int64_t size, Global<float> out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= size) return;
    float sum = 0.0f;
    for (int64_t block = 0; block < blocks; ++block) sum += parts[block * size + at];
    out.store(at, sum);
}

// Gradient of the first layer's weight [H1, columns.total]. The blocks' sums are those of the weights that the kernels
// use, Wk - Wd and Wq + Wd, which share the difference's columns: dWk = d(Wk - Wd), dWq = d(Wq + Wd), dWd = dWq - dWk.
__global__ void write_first_gradient(FeatureColumns columns, int width, int padded, int dim, int stride,
                                     Global<const float> gradient,           // [2, padded, stride]: of Wk - Wd and Wp
                                     Global<const float> weight_q_gradient,  // [padded, D]
                                     Global<float> out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= width * columns.total) return;
    const int64_t n = at / columns.total, column = at % columns.total;
    const int64_t from = n * stride + column % dim, from_query = n * dim + column % dim;
    float value = 0.0f;
    if (columns.has_outer() && column >= columns.weight_outer) return;  // unfold has written dWo
    if (column < columns.weight_k)
        value = weight_q_gradient[from_query];
    else if (column < columns.weight_k + dim)
        value = gradient[from];
    else if (column >= columns.weight_qk)
        value = gradient[int64_t(padded) * stride + from];
    else
        value = weight_q_gradient[from_query] - gradient[from];
    out.store(at, value);
}

// out [rows, columns] from an array whose rows are `stride` apart.
__global__ void copy_rows(Global<const float> from, int stride, int64_t rows, int64_t columns, Global<float> out) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < rows * columns) out.store(at, from[at / columns * stride + at % columns]);
}

// Copies a gradient to where it is asked for, if it is.
struct Writer {
    Stream stream;
    void operator()(const float* from, int stride, int64_t rows, int64_t columns, float* out) const {
        if (out == nullptr || rows * columns == 0) return;
        launch("copy_rows", copy_rows, Grid{ceil_div(rows * columns, 256)}, 256, 0, stream,
               Global<const float>(from, (rows - 1) * stride + columns), stride, rows, columns,
               Global<float>(out, rows * columns));
    }
};

// Adds the blocks' sums, for launches that read the totals.
void sum_over_blocks(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    const auto sum = [&](int64_t parts, int64_t blocks, int64_t size, int64_t to) {
        launch("sum_blocks", sum_blocks, Grid{ceil_div(size, 256)}, 256, 0, stream,
               carved_array<const float>(call.workspace, parts, blocks * size), blocks, size,
               carved_array<float>(call.workspace, to, size));
    };
    sum(plan.gradients, plan.blocks, plan.gradient_size, plan.gradient_sums);
    sum(plan.columns, plan.blocks, plan.columns_size, plan.columns_sums);
    if (plan.sizes.folded) sum(plan.fold.shares, kFoldShares, 2 * plan.fold.cells, plan.fold.sums);
    sum(plan.weight_q_gradients, plan.candidate_blocks, int64_t(plan.sizes.padded[0]) * call.dim, plan.weight_q_sums);
}

void write_first_weight(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    const Sizes& sizes = plan.sizes;
    const FeatureColumns columns = feature_columns(call);
    const int padded = sizes.padded[0], dim = sizes.dim;
    const int stride = sizes.folded ? dim : plan.gradient_stride[0];
    launch("write_first_gradient", write_first_gradient, Grid{ceil_div(sizes.width[0] * columns.total, 256)}, 256, 0,
           stream, columns, sizes.width[0], padded, dim, stride,
           carved_array<const float>(call.workspace, sizes.folded ? plan.fold.sums : plan.gradient_sums,
                                     2 * int64_t(padded) * stride),
           carved_array<const float>(call.workspace, plan.weight_q_sums, int64_t(padded) * dim),
           Global<float>(fp32(call.layers[0].grad_weight), sizes.width[0] * columns.total));
}

// Biases and parameters, from the column sums, and the weights of the other layers and of the output.
void write_layers(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    const Sizes& sizes = plan.sizes;
    const Writer write{stream};
    const float* const gradients = carved<float>(call.workspace, plan.gradient_sums);
    const float* const columns = carved<float>(call.workspace, plan.columns_sums);
    const auto write_columns = [&](ColumnSum which, int l, void* out) {
        write(columns + which * sizes.padded_sum + sizes.padded_first[l], 0, 1, sizes.width[l], fp32(out));
    };
    for (int l = 0; l < sizes.layers; ++l) {
        const Layer& layer = call.layers[l];
        write_columns(kSumOfDz, l, layer.grad_bias);
        write_columns(kSumOfDparam, l, layer.grad_params[0]);
        write_columns(kSumOfDu, l, layer.grad_params[1]);
        write_columns(kSumOfDuU, l, layer.grad_params[2]);
        if (l > 0)
            write(gradients + plan.gradient_layer[l], plan.gradient_stride[l], sizes.width[l], sizes.width[l - 1],
                  fp32(layer.grad_weight));
    }
    if (call.hidden == 0) return;
    const Layer& output = call.layers[call.hidden];
    write_columns(kSumOfDsH, sizes.layers - 1, output.grad_weight);
    write(columns + plan.columns_size - 1, 0, 1, 1, fp32(output.grad_bias));
}

}  // namespace

void finish_backward_statistics(const LocalActivation& call, const BackwardPlan& plan, int layer, Stream stream) {
    const Sizes& sizes = plan.sizes;
    launch("mean_columns", mean_columns, Grid{sizes.padded[layer]}, 32, 0, stream,
           carved_array<const float>(call.workspace, plan.columns, plan.blocks * plan.columns_size), plan.blocks,
           plan.columns_size, sizes.padded_first[layer], sizes.padded_sum,
           Global<const int64_t>(carved<int64_t>(call.workspace, plan.work.pair_first) + call.queries, 1),
           carved_array<float>(call.workspace, plan.statistics, 2 * sizes.padded_sum));
}

void join_candidate_gradients(const LocalActivation& call, const BackwardPlan& plan, Chunk chunk, Stream stream) {
    const bool folded = plan.sizes.folded;
    const int columns = plan.sizes.padded[0], rest = plan.candidate_width - columns;
    const auto floats = [&](int64_t offset, int64_t size) {
        return Global<float>(carved<float>(call.workspace, offset), size);
    };
    launch("join_candidate_partials", join_candidate_partials, Grid{ceil_div(chunk.end - chunk.begin, kThreads / 32)},
           kThreads, 0, stream, slots_of(call, plan.work, chunk), columns, rest, folded, plan.tile.rows, plan.blocks,
           Global<const float>(carved<float>(call.workspace, plan.partials), plan.blocks * 2 * plan.candidate_width),
           floats(plan.constants_gradient, call.queries * columns),
           folded ? floats(plan.fold.gradients, plan.fold.chunk * rest)
                  : floats(plan.query_gradient, call.queries * rest));
}

void finish_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream) {
    finish_queries(call, plan, stream);
    sum_over_blocks(call, plan, stream);
    write_first_weight(call, plan, stream);
    write_layers(call, plan, stream);
}

}  // namespace din_kernels::cuda
