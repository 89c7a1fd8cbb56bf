#include "local_activation/prepare.h"

#include <algorithm>

#include "common/activation.cuh"
#include "common/launch.cuh"
#include "common/typed.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/pack.h"
#include "local_activation/tile_loader.cuh"

namespace din_kernels::cuda {
namespace {

struct ParamSource {
    TypedArray bias[kMaxHidden], params[kMaxHidden][kMaxParams];
    float eps[kMaxHidden];
    bool given_statistics;  // of Dice; else there are none, or the passes for them write mean and rstd
    bool hidden;            // else the score is the only channel itself
    TypedArray output_weight, output_bias;
};

// params [4, padded_sum] = bias, slope or alpha, mean, 1 / sqrt(var + eps), 0 on padding; output [padded + 1] = weight
// and bias of the output. There is a row of blocks per layer and one for the output.
__global__ void write_params(ParamSource source, Sizes sizes, Global<float> params, Global<float> output) {
    const int channel = int(threadIdx.x) + int(blockIdx.x) * int(blockDim.x), layer = int(blockIdx.y);
    if (layer == sizes.layers) {
        const int width = sizes.width[layer - 1], padded = sizes.padded[layer - 1];
        if (channel > padded) return;
        float value = 0.0f;
        if (channel == padded)
            value = source.hidden ? typed_at(source.output_bias, 0) : 0.0f;
        else if (channel < width)
            value = source.hidden ? typed_at(source.output_weight, channel) : 1.0f;
        output.store(channel, value);
        return;
    }
    if (channel >= sizes.padded[layer]) return;
    const auto param = [&](int which) {
        const TypedArray& array = source.params[layer][which];
        return array.data ? typed_at(array, array.size == 1 ? 0 : channel) : 0.0f;
    };
    float values[4] = {};
    if (channel < sizes.width[layer]) {
        values[0] = typed_at(source.bias[layer], channel);
        values[1] = param(0);
        if (source.given_statistics) {
            values[2] = param(1);
            values[3] = 1.0f / sqrtf(param(2) + source.eps[layer]);
        }
    }
    for (int which = 0; which < 4; ++which)
        params.store(which * sizes.padded_sum + sizes.padded_first[layer] + channel, values[which]);
}

// lengths[i] = pairs of candidate i, rounded up to a multiple of `rows`; lengths[Q] = 0.
__global__ void write_lengths(int64_t queries, int rows, Global<const int64_t> length,
                              Global<const int64_t> query_to_user, Global<int64_t> lengths) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i > queries) return;
    const int64_t pairs = i < queries ? length[query_to_user ? query_to_user[i] : i] : 0;
    lengths.store(i, (pairs + rows - 1) / rows * rows);
}

// Rows of the query, side by side from several tables.
template <typename S>
__global__ void gather_query(TableRows<S> source, int64_t queries, int64_t dim, Global<S> query) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= queries * dim) return;
    int64_t column = at % dim;
    int k = 0;
    for (; column >= source.width(k); ++k) column -= source.width(k);
    query.store(at, source.table(k)[source.row_of(k, at / dim) * source.width(k) + column]);
}

// c_i = (Wq + Wd) q_i + b1. A warp per 16 candidates.
template <typename Math>
__global__ void candidate_constants(Global<const typename Math::Storage> query,  // [Q, D]
                                    int64_t queries, Sizes sizes, Global<const uint32_t> matrix,
                                    Global<const float> bias,   // [padded H1]
                                    Global<float> constants) {  // [Q, padded H1]
    using S = typename Math::Storage;
    const int lane = int(threadIdx.x) % 32, stride = sizes.stride[0], columns = sizes.dim_padded;
    const Shared<S> tile(0, kRowsPerWarp * stride);
    const int64_t first = int64_t(blockIdx.x) * kRowsPerWarp;
    // The candidates' rows, with zeros up to the product's depth.
    for (int at = lane; at < kRowsPerWarp * columns; at += 32) {
        const int64_t row = first + at / columns;
        const int column = at % columns;
        const bool there = row < queries && column < sizes.dim;
        tile.store(at / columns * stride + column, there ? query[row * sizes.dim + column] : S{});
    }
    __syncwarp();
    // Their product with Wq + Wd.
    for_groups(sizes.padded[0] / 8, [&](int group, auto count) {
        constexpr int kCount = decltype(count)::value;
        Sums<kCount> sums = {};
        Math::multiply(sums, tile, 0, stride, sizes.steps[0], matrix, group);
        for (int t = 0; t < kCount; ++t)
            for (int r = 0; r < 4; ++r) {
                const int64_t row = first + lane / 4 + 8 * (r / 2);
                const int column = (group + t) * 8 + 2 * (lane % 4) + r % 2;
                if (row < queries) constants.store(row * sizes.padded[0] + column, sums[t][r] + bias[column]);
            }
    });
}

void prepare_params(const LocalActivation& call, const Sizes& sizes, const Workspace& work, Stream stream) {
    ParamSource source{};
    source.given_statistics = params_per_layer(activation_of(call), call.dice_training) == kNormalizingParams;
    source.hidden = call.hidden > 0;
    source.output_weight = call.layers[call.hidden].weight, source.output_bias = call.layers[call.hidden].bias;
    int widest = 0;
    for (int l = 0; l < sizes.layers; ++l) {
        const Layer& layer = call.layers[l];
        source.bias[l] = layer.bias, source.eps[l] = float(layer.eps);
        for (int which = 0; which < kMaxParams; ++which) source.params[l][which] = layer.params[which];
        widest = std::max(widest, sizes.padded[l]);
    }
    launch("write_params", write_params, Grid{ceil_div(widest + 1, 128), sizes.layers + 1}, 128, 0, stream, source,
           sizes, carved_array<float>(call.workspace, work.params, 4 * sizes.padded_sum),
           carved_array<float>(call.workspace, work.output, sizes.padded[sizes.layers - 1] + 1));
}

// before [Q + 1] = pairs before each candidate, whose own are rounded up to a `multiple`.
void count_pairs(const LocalActivation& call, const Workspace& work, int multiple, int64_t before, Stream stream) {
    const auto sums = [&](int64_t offset) { return carved<int64_t>(call.workspace, offset); };
    launch("write_lengths", write_lengths, Grid{ceil_div(call.queries + 1, 256)}, 256, 0, stream, call.queries,
           multiple, Global<const int64_t>(call.length, call.users),
           Global<const int64_t>(call.query_to_user, call.queries),
           Global<int64_t>(sums(work.lengths), call.queries + 1));
    exclusive_scan(sums(work.lengths), call.queries + 1, sums(work.tile_sums), sums(before), stream);
}

template <typename Math>
void prepare_constants(const LocalActivation& call, const Sizes& sizes, const Workspace& work, Stream stream) {
    using S = typename Math::Storage;
    if (call.query.tables[0].ids.data)
        launch("gather_query", gather_query<S>, Grid{ceil_div(call.queries * call.dim, 256)}, 256, 0, stream,
               TableRows<S>{call.query, call.queries, false}, call.queries, call.dim,
               carved_array<S>(call.workspace, work.query, call.queries * call.dim));
    launch("candidate_constants", candidate_constants<Math>, Grid{ceil_div(call.queries, kRowsPerWarp)}, 32,
           size_t(kRowsPerWarp * sizes.stride[0] * sizes.element_bytes), stream, query_of<S>(call, work), call.queries,
           sizes, packed_array(call, sizes, work.weights.weight_q, call.dim, sizes.width[0]),
           carved_array<const float>(call.workspace, work.params, sizes.padded[0]),
           carved_array<float>(call.workspace, work.constants, call.queries * sizes.padded[0]));
}

}  // namespace

void prepare(const LocalActivation& call, const Sizes& sizes, const Workspace& work, int rows, Stream stream) {
    pack_weights(call, sizes, work.weights, false, stream);
    prepare_params(call, sizes, work, stream);
    count_pairs(call, work, 1, work.pair_first, stream);
    if (sizes.folded) count_pairs(call, work, rows, work.slot_first, stream);
    with_math(call, [&](auto math) { prepare_constants<decltype(math)>(call, sizes, work, stream); });
}

}  // namespace din_kernels::cuda
