// The MLP on the tile of a block: what forward and backward compute alike.
#pragma once

#include "unit_activation.cuh"
#include "unit_math.cuh"
#include "unit_rows.cuh"

namespace din_kernels::cuda {

// The prepared MLP, in global memory.
struct UnitWeights {
    UnitSizes sizes;
    Activation activation;
    Global<const uint32_t> keys, products;  // packed [D, H1]: of k, of q * k; null where folded
    Global<const uint32_t> matrices;        // packed parts of A_i [chunk, parts, D, H1]; null where not folded
    int64_t matrix_words;                   // of a part
    int matrix_parts;
    Global<const uint32_t> layers[kMaxHidden];  // packed [H of l - 1, H of l] for l > 0
    Global<const float> constants;              // [Q, padded H1]
    Global<const float> params;                 // [4, padded_sum]: bias, slope or alpha, mean, rstd
    Global<const float> output;                 // [padded H + 1]

    __device__ ChannelParams channel(int layer, int column) const {
        const int at = sizes.padded_first[layer] + column;
        return {params[sizes.padded_sum + at], params[2 * sizes.padded_sum + at], params[3 * sizes.padded_sum + at]};
    }
    __device__ float bias(int layer, int column) const { return params[sizes.padded_first[layer] + column]; }
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
        return l < sizes.layers && l > 0 ? packed(work.layer_matrix[l], sizes.padded[l - 1], sizes.width[l]) : none;
    };
    return {sizes,
            call.hidden > 0 ? call.activation : Activation::kIdentity,
            sizes.folded ? none : packed(work.keys_matrix, call.dim, sizes.width[0]),
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

// Where a lane's sums stand in its warp's rows: register r of tile t.
struct LanePosition {
    int row, column;  // row in the block's tile, column of the layer
    int half;         // 0 or 1: of the lane's two rows
};
__device__ inline LanePosition lane_position(int tile, int r) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    return {warp * kRowsPerWarp + lane / 4 + 8 * (r / 2), tile * 8 + 2 * (lane % 4) + r % 2, r / 2};
}

// products[r] = q_i * k of the warp's rows; zeros where there is no pair.
template <typename S>
__device__ void multiply_queries(const Shared<S>& keys, const Shared<S>& products, const Shared<int>& candidates,
                                 const Global<const S>& query, int dim, int stride, bool vector) {
    const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * kRowsPerWarp;
    if (vector) {
        for (int at = lane; at < kRowsPerWarp * (dim / 4); at += 32) {
            const int row = first + at / (dim / 4), column = at % (dim / 4) * 4;
            const int64_t i = candidates[row];
            Vector<S, 4> product{};
            if (i >= 0) {
                const auto q = query.template load<4>(i * dim + column);
                const auto k = keys.template load<4>(row * stride + column);
                for (int e = 0; e < 4; ++e) product.at[e] = narrow<S>(widen(q.at[e]) * widen(k.at[e]));
            }
            products.template store<4>(row * stride + column, product);
        }
    } else {
        for (int at = lane; at < kRowsPerWarp * dim; at += 32) {
            const int row = first + at / dim, column = at % dim;
            const int64_t i = candidates[row];
            const float product = i < 0 ? 0.0f : widen(query[i * dim + column]) * widen(keys[row * stride + column]);
            products.store(row * stride + column, narrow<S>(product));
        }
    }
    __syncwarp();
}

// z of layer `layer` for the warp's rows: visit(tile within the group, register, position, z) for every sum that the
// lane holds, padding columns among them. `chunk_begin`: the candidate of the first matrix, where folded.
template <typename Math, bool kFolded, typename Visit>
__device__ void layer_sums(const UnitWeights& weights, int layer, const Shared<typename Math::Storage>& input,
                           const Shared<typename Math::Storage>& products, const Shared<int>& candidates,
                           int64_t chunk_begin, const Visit& visit) {
    const UnitSizes& sizes = weights.sizes;
    const int first = int(threadIdx.x) / 32 * kRowsPerWarp * sizes.stride[layer];
    const int tiles = sizes.padded[layer] / 8;
    for (int group = 0; group < tiles; group += kTiles) {
        Sums sums = {};
        if (kFolded && layer == 0) {
            const int64_t words = weights.matrix_words, matrix = (candidates[0] - chunk_begin) * weights.matrix_parts;
            for (int part = 0; part < weights.matrix_parts; ++part)
                Math::multiply(sums, input, first, sizes.stride[0], sizes.steps[0],
                               weights.matrices.part((matrix + part) * words, words), group, tiles);
        } else if (layer == 0) {
            Math::multiply(sums, input, first, sizes.stride[0], sizes.steps[0], weights.keys, group, tiles);
            Math::multiply(sums, products, first, sizes.stride[0], sizes.steps[0], weights.products, group, tiles);
        } else {
            Math::multiply(sums, input, first, sizes.stride[layer], sizes.steps[layer], weights.layers[layer], group,
                           tiles);
        }
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
            if (group + t >= tiles) break;
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const LanePosition at = lane_position(group + t, r);
                float added = 0.0f;
                if (layer > 0) {
                    added = weights.bias(layer, at.column);
                } else if (candidates[at.row] >= 0) {
                    added = weights.constants[int64_t(candidates[at.row]) * sizes.padded[0] + at.column];
                }
                visit(at, sums[t][r] + added);
            }
        }
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

    // Layers 0 .. end: visit(layer, position, z) sees every z, part gets the lane's share of its two rows' scores where
    // the last layer is among them.
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
            layer_sums<Math, kFolded>(
                weights, layer, layer == 0 ? keys : hidden(layer), products(), candidates,
                call.loader.pairs.slots.begin, [&](const LanePosition& position, float z) {
                    visit(layer, position, z);
                    const float h =
                        activate<kApproximate>(weights.activation, z, weights.channel(layer, position.column));
                    if (layer == sizes.layers - 1)
                        part[position.half] = fmaf(weights.output[position.column], h, part[position.half]);
                    else
                        hidden(layer + 1).store(position.row * sizes.stride[layer + 1] + position.column, narrow<S>(h));
                });
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
                store(lane_position(0, 2 * half).row,
                      call.scale * (part[half] + weights.output[weights.sizes.padded[weights.sizes.layers - 1]]));
        }
    }
};

}  // namespace din_kernels::cuda
