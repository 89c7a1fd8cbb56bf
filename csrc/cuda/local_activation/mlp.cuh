// The MLP on the tile of a block, which forward and backward compute alike.
#pragma once

#include "common/activation.cuh"
#include "local_activation/dispatch.h"
#include "local_activation/tile.cuh"

namespace din_kernels::cuda {

// The prepared MLP, in global memory.
struct MlpWeights {
    Sizes sizes;
    Activation activation;
    Global<const uint32_t> weight_qk;  // packed [D, H1]: Wp; null where folded
    Global<const uint32_t> matrices;   // packed parts of A_i [chunk, parts, D, H1]; null where not folded
    int64_t matrix_words;              // of a part
    int matrix_parts;
    Global<const uint32_t> layers[kMaxHidden];  // packed: weight_k [D, H1], null where folded, and [H of l - 1, H of l]
    Global<const float> constants;              // [Q, padded H1]: c_i
    Global<const float> params;                 // [4, padded_sum]: bias, slope or alpha, mean, rstd
    Global<const float> output;                 // [padded H + 1]: weight and bias of the output

    // The parameters of channels `at`, counted over all layers, and at + 1.
    __device__ ChannelPair channels(int at) const {
        const auto param = [&](int which) { return params.template load<2>(which * sizes.padded_sum + at); };
        const auto slope_or_alpha = param(1), mean = param(2), rstd = param(3);
        return {{{slope_or_alpha.at[0], mean.at[0], rstd.at[0]}, {slope_or_alpha.at[1], mean.at[1], rstd.at[1]}}};
    }
};

inline MlpWeights mlp_weights(const LocalActivation& call, const Sizes& sizes, const Workspace& work,
                              const FoldPlan& fold) {
    const auto none = no_array<const uint32_t>();
    const auto first = [&](int64_t offset) {
        return sizes.folded ? none : packed_array(call, sizes, offset, call.dim, sizes.width[0]);
    };
    const auto layer = [&](int l) {
        return l < sizes.layers ? packed_array(call, sizes, work.weights.layers[l], sizes.padded[l - 1], sizes.width[l])
                                : none;
    };
    const auto matrices =
        carved_array<const uint32_t>(call.workspace, fold.matrices, fold.chunk * fold.parts * fold.words);
    return {sizes,
            activation_of(call),
            first(work.weights.weight_qk),
            sizes.folded ? matrices : none,
            fold.words,
            fold.parts,
            {first(work.weights.weight_k), layer(1), layer(2)},
            carved_array<const float>(call.workspace, work.constants, call.queries * sizes.padded[0]),
            carved_array<const float>(call.workspace, work.params, 4 * sizes.padded_sum),
            carved_array<const float>(call.workspace, work.output, sizes.padded[sizes.layers - 1] + 1)};
}

// The part of a launch over the tiles that forward and backward have in common.
template <typename S, bool kFolded>
struct TileCall {
    MlpWeights weights;
    TileLoader<S, kFolded> loader;
    Global<const S> query;  // [Q, D]
    bool query_by_four;     // its rows can be read four elements at a time
    bool softmax;
    float scale;
    Global<const int64_t> pair_begin;  // [Q] or null
    int statistics_layer = -1;         // the pass is for Dice's statistics of this layer; -1: for everything else
    bool resume = false;               // the blocks' sums go on from those of the chunk before
};

// Calls visit(first tile, sums) with z of a layer for the warp's rows, group by group, padding columns among them.
// Folded, chunk_begin is the candidate of the first matrix.
template <typename Math, bool kFolded, typename Visit>
__device__ void layer_sums(const MlpWeights& weights, int layer, const Shared<typename Math::Storage>& input,
                           const Shared<typename Math::Storage>& products, const Shared<int>& candidates,
                           int64_t chunk_begin, const Visit& visit) {
    const Sizes& sizes = weights.sizes;
    const int stride = sizes.stride[layer], first = int(threadIdx.x) / 32 * kRowsPerWarp * stride;
    const int steps = sizes.steps[layer];
    // The bias is added, or in the first layer c_i of the row's candidate.
    const Global<const float> constants = layer > 0 ? weights.params : weights.constants;
    int64_t constant[2];  // of the lane's two rows; -1 where there is no pair
    for (int half = 0; half < 2; ++half) {
        const int64_t i = candidates[lane_position(0, half).row];
        constant[half] = layer > 0 ? sizes.padded_first[layer] : i < 0 ? -1 : i * sizes.padded[0];
    }
    for_groups(sizes.padded[layer] / 8, [&](int group, auto count) {
        constexpr int kCount = decltype(count)::value;
        // The product, folded with A_i, else with the weights that all candidates share.
        Sums<kCount> sums = {};
        if (kFolded && layer == 0) {
            const int64_t words = weights.matrix_words, matrix = (candidates[0] - chunk_begin) * weights.matrix_parts;
            for (int part = 0; part < weights.matrix_parts; ++part)
                Math::multiply(sums, input, first, stride, steps, weights.matrices.part((matrix + part) * words, words),
                               group);
        } else {
            Math::multiply(sums, input, first, stride, steps, weights.layers[layer], group);
            if (layer == 0) Math::multiply(sums, products, first, stride, steps, weights.weight_qk, group);
        }
        // Bias or c_i.
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

// A block's tile on its way through the MLP.
template <typename Math, bool kFolded>
struct TileMlp {
    using S = typename Math::Storage;
    const TileCall<S, kFolded>& call;
    const TileShared& at;

    __device__ Shared<S> products() const {
        return Shared<S>(uint32_t(at.products), kFolded ? 0 : at.rows * call.weights.sizes.stride[0]);
    }
    __device__ Shared<S> hidden(int layer) const {
        return Shared<S>(uint32_t(at.hidden[layer]), at.rows * call.weights.sizes.stride[layer]);
    }

    // Zeros everywhere. Columns that no row and no layer fills stay zero: they meet zero weights, and 0 * NaN would not
    // be 0.
    __device__ void clear() const {
        const Sizes& sizes = call.weights.sizes;
        const auto zero = [&](const Shared<S>& array, int size) {
            for (int e = int(threadIdx.x); e < size; e += int(blockDim.x)) array.store(e, S{});
        };
        for (int stage = 0; stage < at.stages; ++stage) zero(call.loader.history_of(stage), at.rows * sizes.stride[0]);
        if (!kFolded) zero(products(), at.rows * sizes.stride[0]);
        for (int layer = 1; layer < sizes.layers; ++layer) zero(hidden(layer), at.rows * sizes.stride[layer]);
    }

    // Layers 0 .. end: visit(layer, first tile, z) sees groups of tiles of z. Where the last layer is among them, part
    // gets the lane's share of its two rows' scores.
    template <typename Visit>
    __device__ void run(int stage, int end, float (&part)[2], const Visit& visit) const {
        const Sizes& sizes = call.weights.sizes;
        const Shared<S> history = call.loader.history_of(stage);
        const Shared<int> candidates = call.loader.candidates_of(stage);
        if constexpr (!kFolded)
            multiply_queries(history, products(), candidates, call.query, sizes.dim, sizes.stride[0],
                             call.query_by_four);
        for (int layer = 0; layer < end; ++layer) {
            const Shared<S> input = layer == 0 ? history : hidden(layer);
            layer_sums<Math, kFolded>(call.weights, layer, input, products(), candidates, call.loader.pairs.slots.begin,
                                      [&](int group, auto& sums) {
                                          visit(layer, group, sums);
                                          activate(layer, group, sums);
                                          if (layer == sizes.layers - 1)
                                              add_scores(group, sums, part);
                                          else
                                              store_hidden(layer + 1, group, sums);
                                      });
            __syncwarp();
        }
    }

    // The scores of the warp's rows from the parts of the four lanes that share a row, one of which calls
    // store(row, score).
    template <typename Store>
    __device__ void scores(float (&part)[2], const Store& store) const {
        const MlpWeights& weights = call.weights;
        for (int half = 0; half < 2; ++half) {
            part[half] += __shfl_xor_sync(~0u, part[half], 1);
            part[half] += __shfl_xor_sync(~0u, part[half], 2);
            if (threadIdx.x % 4 == 0)
                store(lane_position(0, half).row,
                      call.scale * (part[half] + weights.output[weights.sizes.padded[weights.sizes.layers - 1]]));
        }
    }

 private:
    // z becomes act(z).
    template <int kCount>
    __device__ __forceinline__ void activate(int layer, int group, Sums<kCount>& sums) const {
        const MlpWeights& weights = call.weights;
        const int channel = weights.sizes.padded_first[layer];
        with_activation<sizeof(S) == 2>(weights.activation, [&](auto act) {
            using Act = decltype(act);
#pragma unroll
            for (int t = 0; t < kCount; ++t) {
                const auto channels = weights.channels(channel + lane_position(group + t, 0).column);
#pragma unroll
                for (int r = 0; r < 4; ++r) sums[t][r] = Act::value(sums[t][r], channels.at[r % 2]);
            }
        });
    }

    // part += <h, output weight> of the lane's elements.
    template <int kCount>
    __device__ __forceinline__ void add_scores(int group, const Sums<kCount>& sums, float (&part)[2]) const {
#pragma unroll
        for (int t = 0; t < kCount; ++t) {
            const auto weight = call.weights.output.template load<2>(lane_position(group + t, 0).column);
#pragma unroll
            for (int r = 0; r < 4; ++r) part[r / 2] = fmaf(weight.at[r % 2], sums[t][r], part[r / 2]);
        }
    }

    // h, narrowed, to the input of `layer`.
    template <int kCount>
    __device__ __forceinline__ void store_hidden(int layer, int group, const Sums<kCount>& sums) const {
        const int stride = call.weights.sizes.stride[layer];
        const Shared<S> output = hidden(layer);
#pragma unroll
        for (int t = 0; t < kCount; ++t) {
            const LanePosition at = lane_position(group + t, 0);
            const int to = at.row * stride + at.column;
            output.template store<2>(to, narrow_pair<S>(sums[t][0], sums[t][1]));
            output.template store<2>(to + 8 * stride, narrow_pair<S>(sums[t][2], sums[t][3]));
        }
    }
};

}  // namespace din_kernels::cuda
