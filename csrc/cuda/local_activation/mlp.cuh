// The MLP on the tile of a block: what forward and backward compute alike.
#pragma once

#include "common/activation.cuh"
#include "local_activation/products.cuh"
#include "local_activation/tile_loader.cuh"

namespace din_kernels::cuda {

// The prepared MLP, in global memory.
struct UnitWeights {
    UnitSizes sizes;
    Activation activation;
    Global<const uint32_t> products;  // packed [D, H1]: of q * k; null where folded
    Global<const uint32_t> matrices;  // packed parts of A_i [chunk, parts, D, H1]; null where not folded
    int64_t matrix_words;             // of a part
    int matrix_parts;
    Global<const uint32_t> layers[kMaxHidden];  // packed [D, H1] of k, null where folded, and [H of l - 1, H of l]
    Global<const float> constants;              // [Q, padded H1]
    Global<const float> params;                 // [4, padded_sum]: bias, slope or alpha, mean, rstd
    Global<const float> output;                 // [padded H + 1]

    // Of channels `at`, counted over all layers, and at + 1.
    __device__ ChannelPair channels(int at) const {
        const auto param = [&](int which) { return params.template load<2>(which * sizes.padded_sum + at); };
        const auto slope_or_alpha = param(1), mean = param(2), rstd = param(3);
        return {{{slope_or_alpha.at[0], mean.at[0], rstd.at[0]}, {slope_or_alpha.at[1], mean.at[1], rstd.at[1]}}};
    }
};

inline UnitWeights unit_weights(const LocalActivation& call, const UnitSizes& sizes, const UnitWorkspace& work,
                                const FoldPlan& fold) {
    const auto packed = [&](int64_t offset, int64_t in, int64_t out) {
        return Global<const uint32_t>(carved<uint32_t>(call.workspace, offset), packed_sizes(sizes, in, out).words);
    };
    const Global<const uint32_t> none(nullptr, 0);
    const auto floats = [&](int64_t offset, int64_t size) {
        return Global<const float>(carved<float>(call.workspace, offset), size);
    };
    const auto layer = [&](int l) {
        if (l == 0) return sizes.folded ? none : packed(work.keys_matrix, call.dim, sizes.width[0]);
        return l < sizes.layers ? packed(work.layer_matrix[l], sizes.padded[l - 1], sizes.width[l]) : none;
    };
    return {sizes,
            call.hidden > 0 ? call.activation : Activation::kIdentity,
            sizes.folded ? none : packed(work.products_matrix, call.dim, sizes.width[0]),
            Global<const uint32_t>(sizes.folded ? carved<uint32_t>(call.workspace, fold.matrices) : nullptr,
                                   fold.chunk * fold.parts * fold.words),
            fold.words,
            fold.parts,
            {layer(0), layer(1), layer(2)},
            floats(work.constants, call.queries * sizes.padded[0]),
            floats(work.params, 4 * sizes.padded_sum),
            floats(work.output, sizes.padded[sizes.layers - 1] + 1)};
}

// What a launch of forward and one of backward get alike.
template <typename S, bool kFolded>
struct UnitCall {
    UnitWeights weights;
    TileLoader<S, kFolded> loader;
    Global<const S> query;  // [Q, D]
    bool query_vector;      // its rows can be read four elements at a time
    bool softmax;
    float scale;
    Global<const int64_t> pair_begin;  // [Q] or null
    int statistics_layer = -1;         // the pass is for Dice's statistics of this layer; -1: for everything else
    bool resume = false;               // the blocks' sums go on from those of the chunk before
};

// Where a lane's sums stand in its warp's rows: registers 2 half and 2 half + 1 of a tile are neighbours.
struct LanePosition {
    int row, column;  // row in the block's tile, column of the layer
};
__device__ inline LanePosition lane_position(int tile, int half) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    return {warp * kRowsPerWarp + lane / 4 + 8 * half, tile * 8 + 2 * (lane % 4)};
}

// products[r] = q_i * k of the warp's rows; zeros where there is no pair.
template <typename S>
__device__ void multiply_queries(const Shared<S>& keys, const Shared<S>& products, const Shared<int>& candidates,
                                 const Global<const S>& query, int dim, int stride, bool vector) {
    const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * kRowsPerWarp;
    const auto multiply = [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        const RowThreads split(dim / kWidth, 32);
        const int count = split.count(lane, kRowsPerWarp);
        for (int column = split.piece(lane) * kWidth; column < dim; column += split.pieces() * kWidth)
            for (int n = 0; n < count; n += RowThreads::kBatch) {
                int row[RowThreads::kBatch];
                Vector<S, kWidth> q[RowThreads::kBatch], both[RowThreads::kBatch];
#pragma unroll
                for (int b = 0; b < RowThreads::kBatch; ++b) {
                    // Behind the last row comes the last one again.
                    row[b] = first + split.row(lane) + (n + b < count ? n + b : count - 1) * split.rows();
                    const int64_t i = candidates[row[b]];
                    q[b] = {};  // where there is no pair, k is zero too
                    if (i >= 0) q[b] = query.template load<kWidth>(i * dim + column);
                }
#pragma unroll
                for (int b = 0; b < RowThreads::kBatch; ++b)
                    both[b] = product(q[b], keys.template load<kWidth>(row[b] * stride + column));
#pragma unroll
                for (int b = 0; b < RowThreads::kBatch; ++b)
                    products.template store<kWidth>(row[b] * stride + column, both[b]);
            }
    };
    if (vector)
        multiply(std::integral_constant<int, 4>{});
    else
        multiply(std::integral_constant<int, 1>{});
    __syncwarp();
}

// z of layer `layer` for the warp's rows: visit(first tile, sums) for groups of tiles, padding columns among them.
// `chunk_begin`: the candidate of the first matrix, where folded.
template <typename Math, bool kFolded, typename Visit>
__device__ void layer_sums(const UnitWeights& weights, int layer, const Shared<typename Math::Storage>& input,
                           const Shared<typename Math::Storage>& products, const Shared<int>& candidates,
                           int64_t chunk_begin, const Visit& visit) {
    const UnitSizes& sizes = weights.sizes;
    const int stride = sizes.stride[layer], first = int(threadIdx.x) / 32 * kRowsPerWarp * stride;
    const int steps = sizes.steps[layer];
    // What is added: the bias or, in the first layer, c_i of the row's candidate.
    const Global<const float> constants = layer > 0 ? weights.params : weights.constants;
    int64_t constant[2];  // of the lane's two rows; -1: there is no pair
    for (int half = 0; half < 2; ++half) {
        const int64_t i = candidates[lane_position(0, half).row];
        constant[half] = layer > 0 ? sizes.padded_first[layer] : i < 0 ? -1 : i * sizes.padded[0];
    }
    for_groups(sizes.padded[layer] / 8, [&](int group, auto count) {
        constexpr int kCount = decltype(count)::value;
        Sums<kCount> sums = {};
        if (kFolded && layer == 0) {
            const int64_t words = weights.matrix_words, matrix = (candidates[0] - chunk_begin) * weights.matrix_parts;
            for (int part = 0; part < weights.matrix_parts; ++part)
                Math::multiply(sums, input, first, stride, steps, weights.matrices.part((matrix + part) * words, words),
                               group);
        } else {
            Math::multiply(sums, input, first, stride, steps, weights.layers[layer], group);
            if (layer == 0) Math::multiply(sums, products, first, stride, steps, weights.products, group);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64_t from = constant[half] + lane_position(group, half).column;
#pragma unroll
            for (int t = 0; t < kCount; ++t) {
                Vector<float, 2> added{};
                if (constant[half] >= 0) added = constants.template load<2>(from + 8 * t);
                sums[t][2 * half] += added.at[0], sums[t][2 * half + 1] += added.at[1];
            }
        }
        visit(group, sums);
    });
}

// A lane's sums to fp32 rows `stride` apart, in which two neighbours are written at once.
template <int kCount>
__device__ void store_sums(const Sums<kCount>& sums, int group, const Shared<float>& to, int stride) {
#pragma unroll
    for (int t = 0; t < kCount; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const LanePosition at = lane_position(group + t, half);
            to.template store<2>(at.row * stride + at.column, {{sums[t][2 * half], sums[t][2 * half + 1]}});
        }
}

// A block's tile on its way through the MLP.
template <typename Math, bool kFolded>
struct TileMlp {
    using S = typename Math::Storage;
    const UnitCall<S, kFolded>& call;
    const TileShared& at;

    __device__ Shared<S> products() const {
        return Shared<S>(uint32_t(at.products), kFolded ? 0 : at.rows * call.weights.sizes.stride[0]);
    }
    __device__ Shared<S> hidden(int layer) const {
        return Shared<S>(uint32_t(at.hidden[layer]), at.rows * call.weights.sizes.stride[layer]);
    }

    // Columns that no row and no layer fills stay zero: they meet zero weights, and 0 * NaN would not be 0.
    __device__ void clear() const {
        const UnitSizes& sizes = call.weights.sizes;
        const auto zero = [&](const Shared<S>& array, int size) {
            for (int e = int(threadIdx.x); e < size; e += int(blockDim.x)) array.store(e, S{});
        };
        for (int stage = 0; stage < at.stages; ++stage) zero(call.loader.keys_of(stage), at.rows * sizes.stride[0]);
        if (!kFolded) zero(products(), at.rows * sizes.stride[0]);
        for (int layer = 1; layer < sizes.layers; ++layer) zero(hidden(layer), at.rows * sizes.stride[layer]);
    }

    // Layers 0 .. end: visit(layer, first tile, z) sees groups of tiles of z, part gets the lane's share of its two
    // rows' scores where the last layer is among them.
    template <typename Visit>
    __device__ void run(int stage, int end, float (&part)[2], const Visit& visit) const {
        constexpr bool kApproximate = sizeof(S) == 2;
        const UnitWeights& weights = call.weights;
        const UnitSizes& sizes = weights.sizes;
        const Shared<S> keys = call.loader.keys_of(stage);
        const Shared<int> candidates = call.loader.candidates_of(stage);
        if constexpr (!kFolded)
            multiply_queries(keys, products(), candidates, call.query, sizes.dim, sizes.stride[0], call.query_vector);
        for (int layer = 0; layer < end; ++layer) {
            const bool last = layer == sizes.layers - 1;
            const int channel = sizes.padded_first[layer], stride = last ? 0 : sizes.stride[layer + 1];
            const Shared<S> input = layer == 0 ? keys : hidden(layer), output = last ? input : hidden(layer + 1);
            const auto activated = [&](int group, auto& sums) {
                constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(sums)>>;
                visit(layer, group, sums);
                with_activation(weights.activation, [&](auto kind) {
                    constexpr Activation kKind = decltype(kind)::value;
#pragma unroll
                    for (int t = 0; t < kCount; ++t) {
                        const auto channels = weights.channels(channel + lane_position(group + t, 0).column);
#pragma unroll
                        for (int r = 0; r < 4; ++r)
                            sums[t][r] = activate<kApproximate>(kKind, sums[t][r], channels.at[r % 2]);
                    }
                });
#pragma unroll
                for (int t = 0; t < kCount; ++t) {
                    const LanePosition at = lane_position(group + t, 0);
                    if (last) {
                        const auto weight = weights.output.template load<2>(at.column);
#pragma unroll
                        for (int r = 0; r < 4; ++r) part[r / 2] = fmaf(weight.at[r % 2], sums[t][r], part[r / 2]);
                    } else {
                        const int to = at.row * stride + at.column;
                        output.template store<2>(to, narrow_pair<S>(sums[t][0], sums[t][1]));
                        output.template store<2>(to + 8 * stride, narrow_pair<S>(sums[t][2], sums[t][3]));
                    }
                }
            };
            layer_sums<Math, kFolded>(weights, layer, input, products(), candidates, call.loader.pairs.slots.begin,
                                      activated);
            __syncwarp();
        }
    }

    // The scores of the warp's rows from the parts of the four lanes that share a row, one of which calls
    // store(row, score).
    template <typename Store>
    __device__ void scores(float (&part)[2], const Store& store) const {
        const UnitWeights& weights = call.weights;
        for (int half = 0; half < 2; ++half) {
            part[half] += __shfl_xor_sync(~0u, part[half], 1);
            part[half] += __shfl_xor_sync(~0u, part[half], 2);
            if (threadIdx.x % 4 == 0)
                store(lane_position(0, half).row,
                      call.scale * (part[half] + weights.output[weights.sizes.padded[weights.sizes.layers - 1]]));
        }
    }
};

}  // namespace din_kernels::cuda
