#include "local_activation/prepare.h"

#include <algorithm>

#include "common/launch.cuh"
#include "common/typed.cuh"
#include "local_activation/products.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/tile_loader.cuh"

namespace din_kernels::cuda {
namespace {

struct PackJobs {
    PackedSource source[kMaxPackJobs];
    int64_t steps[kMaxPackJobs], words[kMaxPackJobs];
    Global<uint32_t> packed[kMaxPackJobs];
};

// A row of blocks per matrix.
template <typename Math>
__global__ void pack(PackJobs jobs) {
    const int job = int(blockIdx.y);
    const PackedSource& source = jobs.source[job];
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, words = jobs.words[job];
    if (at >= words * source.count) return;
    const int64_t begin = source.first + at / words * source.apart;
    const PackedOrder order{words / (Math::kWords * jobs.steps[job]), jobs.steps[job]};
    jobs.packed[job].store(at, Math::word(at % words, order, [&](int64_t k, int64_t n) {
                               if (k >= source.in || n >= source.out) return 0.0f;
                               const int64_t row = source.transposed ? k : n, column = source.transposed ? n : k;
                               const float first = typed_at(source.weight, row * source.leading + begin + column);
                               if (source.sign == 0.0f) return first;
                               return first + source.sign * typed_at(source.weight,
                                                                     row * source.leading + source.second + column);
                           }));
}

struct ParamSource {
    TypedArray bias[kMaxHidden], params[kMaxHidden][3];
    float eps[kMaxHidden];
    bool dice, from_batch;  // from_batch: mean and rstd are written by the statistics instead
    bool hidden;            // else the score is the only channel itself
    TypedArray output_weight, output_bias;
};

// params [4, padded_sum]: bias, slope or alpha, mean, 1 / sqrt(var + eps), 0 on padding; output [padded + 1]: weight
// and bias of the output. A row of blocks per layer and one for the output.
__global__ void write_params(ParamSource source, UnitSizes sizes, Global<float> params, Global<float> output) {
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
        if (source.dice && !source.from_batch) {
            values[2] = param(1);
            values[3] = 1.0f / sqrtf(param(2) + source.eps[layer]);
        }
    }
    for (int which = 0; which < 4; ++which)
        params.store(which * sizes.padded_sum + sizes.padded_first[layer] + channel, values[which]);
}

// Pairs of each candidate, rounded up to a multiple of `rows`.
__global__ void write_lengths(int64_t queries, int rows, Global<const int64_t> length,
                              Global<const int64_t> query_to_user, Global<int64_t> lengths) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i > queries) return;
    const int64_t pairs = i < queries ? length[query_to_user ? query_to_user[i] : i] : 0;
    lengths.store(i, (pairs + rows - 1) / rows * rows);
}

template <typename S>
__global__ void gather_query(TableRows<S> source, int64_t queries, int64_t dim, Global<S> query) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= queries * dim) return;
    int64_t column = at % dim;
    int k = 0;
    for (; column >= source.tables.width[k]; ++k) column -= source.tables.width[k];
    query.store(at, source.table(k)[source.row_of(k, at / dim) * source.tables.width[k] + column]);
}

// c_i = (Wq + Wd) q_i + b1, a warp per 16 candidates.
template <typename Math>
__global__ void query_constants(Global<const typename Math::Storage> query,  // [Q, D]
                                int64_t queries, UnitSizes sizes, Global<const uint32_t> matrix,
                                Global<const float> bias,   // [padded H1]
                                Global<float> constants) {  // [Q, padded H1]
    using S = typename Math::Storage;
    const int lane = int(threadIdx.x) % 32, stride = sizes.stride[0], columns = sizes.dim_padded;
    const Shared<S> tile(0, kRowsPerWarp * stride);
    const int64_t first = int64_t(blockIdx.x) * kRowsPerWarp;
    for (int at = lane; at < kRowsPerWarp * columns; at += 32) {
        const int64_t row = first + at / columns;
        const int column = at % columns;
        const bool there = row < queries && column < sizes.dim;
        tile.store(at / columns * stride + column, there ? query[row * sizes.dim + column] : S{});
    }
    __syncwarp();
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

}  // namespace

void pack_matrices(const LocalActivation& call, const UnitSizes& sizes, const std::vector<PackJob>& jobs,
                   Stream stream) {
    const Global<uint32_t> none(nullptr, 0);
    PackJobs packed{{}, {}, {}, {none, none, none, none, none, none, none, none}};
    int64_t most = 0;
    for (size_t j = 0; j < jobs.size(); ++j) {
        const PackedSizes p = packed_sizes(sizes, jobs[j].source.padded_in, jobs[j].source.out);
        packed.source[j] = jobs[j].source, packed.steps[j] = p.steps, packed.words[j] = p.words;
        const int64_t words = p.words * jobs[j].source.count;
        packed.packed[j] = Global<uint32_t>(jobs[j].packed, words);
        most = std::max(most, words);
    }
    with_math(call, [&](auto math) {
        launch("pack", pack<decltype(math)>, Grid{ceil_div(most, 256), int64_t(jobs.size())}, 256, 0, stream, packed);
    });
}

void prepare_unit(const LocalActivation& call, const UnitSizes& sizes, const UnitWorkspace& work, int rows,
                  Stream stream) {
    const FeatureColumns columns = feature_columns(call);
    const auto words = [&](int64_t offset) { return carved<uint32_t>(call.workspace, offset); };
    const float sign = columns.has_difference ? 1.0f : 0.0f;
    const auto of_first = [&](int64_t block, float sign_of_difference, int64_t offset) {
        return PackJob{{call.layers[0].weight, columns.total, call.dim, sizes.width[0], call.dim, block,
                        columns.difference, sign_of_difference, false},
                       words(offset)};
    };
    std::vector<PackJob> jobs = {of_first(columns.query, sign, work.query_matrix)};
    if (!sizes.folded) {
        jobs.push_back(of_first(columns.keys, -sign, work.keys_matrix));
        jobs.push_back(of_first(columns.products, 0.0f, work.products_matrix));
    }
    ParamSource source{};
    source.dice = call.activation == Activation::kDice && call.hidden > 0, source.from_batch = call.dice_training;
    source.hidden = call.hidden > 0;
    source.output_weight = call.layers[call.hidden].weight, source.output_bias = call.layers[call.hidden].bias;
    int widest = 0;
    for (int l = 0; l < sizes.layers; ++l) {
        const UnitLayer& layer = call.layers[l];
        if (l > 0)
            jobs.push_back({{layer.weight, sizes.width[l - 1], sizes.width[l - 1], sizes.width[l], sizes.padded[l - 1],
                             0, 0, 0.0f, false},
                            words(work.layer_matrix[l])});
        source.bias[l] = layer.bias, source.eps[l] = float(layer.eps);
        for (int which = 0; which < 3; ++which) source.params[l][which] = layer.params[which];
        widest = std::max(widest, sizes.padded[l]);
    }
    pack_matrices(call, sizes, jobs, stream);
    auto* const params = carved<float>(call.workspace, work.params);
    launch("write_params", write_params, Grid{ceil_div(widest + 1, 128), sizes.layers + 1}, 128, 0, stream, source,
           sizes, Global<float>(params, 4 * sizes.padded_sum),
           Global<float>(carved<float>(call.workspace, work.output), sizes.padded[sizes.layers - 1] + 1));
    const auto sums = [&](int64_t offset) { return carved<int64_t>(call.workspace, offset); };
    const auto count = [&](int multiple, int64_t before) {
        launch("write_lengths", write_lengths, Grid{ceil_div(call.queries + 1, 256)}, 256, 0, stream, call.queries,
               multiple, Global<const int64_t>(call.length, call.users),
               Global<const int64_t>(call.query_to_user, call.queries),
               Global<int64_t>(sums(work.lengths), call.queries + 1));
        exclusive_scan(sums(work.lengths), call.queries + 1, sums(work.tile_sums), sums(before), stream);
    };
    count(1, work.pair_first);
    if (sizes.folded) count(rows, work.slot_first);
    with_math(call, [&](auto math) {
        using Math = decltype(math);
        using S = typename Math::Storage;
        if (call.query.ids[0].data)
            launch("gather_query", gather_query<S>, Grid{ceil_div(call.queries * call.dim, 256)}, 256, 0, stream,
                   TableRows<S>{call.query, call.queries, false}, call.queries, call.dim,
                   Global<S>(carved<S>(call.workspace, work.query), call.queries * call.dim));
        launch("query_constants", query_constants<Math>, Grid{ceil_div(call.queries, kRowsPerWarp)}, 32,
               size_t(kRowsPerWarp * sizes.stride[0] * sizes.element_bytes), stream,
               Global<const S>(query_of<S>(call, work), call.queries * call.dim), call.queries, sizes,
               Global<const uint32_t>(words(work.query_matrix), packed_sizes(sizes, call.dim, sizes.width[0]).words),
               Global<const float>(params, sizes.padded[0]),
               Global<float>(carved<float>(call.workspace, work.constants), call.queries * sizes.padded[0]));
    });
}

}  // namespace din_kernels::cuda
