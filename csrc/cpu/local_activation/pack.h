// The MLP in the layouts that kernels read, and its gradients back in those of torch.nn.Linear. Compiled once.
#pragma once

#include <cstdint>

#include "common/buffer.h"
#include "local_activation/call.h"

namespace din_kernels::cpu {

// Parameters per hidden layer that kernels read: a slope (PReLU), alpha, mean and inverse deviation (Dice).
inline int packed_params(const LocalActivation& args) { return params_per_layer(args.activation, false); }

template <typename T>
class PackedWeights {
 public:
    PackedMlp<T> mlp{};

    PackedWeights(const LocalActivation& args, int lanes, bool backward, int threads);

    // Dice in training: mean and biased variance [H] of a hidden layer.
    void set_statistics(const LocalActivation& args, int layer, const T* mean, const T* var);
    // Gradients [H] of the mean and the variance of `count` pairs.
    void set_through_statistics(int layer, const T* grad_mean, const T* grad_var, int64_t count);

 private:
    Buffer<T> memory_;

    template <typename Take>
    void lay_out(const LocalActivation& args, bool backward, Take take);
    void pack_first(const LocalActivation& args, bool backward);
    void pack_outer(const LocalActivation& args, bool backward, int threads);
    void pack_layer(const LocalActivation& args, int layer, bool backward);
};

// Weight gradients of every block, and their sum in the order of the blocks.
template <typename T>
class BlockGradients {
 public:
    BlockGradients(const LocalActivation& args, const PackedMlp<T>& mlp, int64_t blocks);

    void clear(int threads);
    const PartialGrads<T>& of(int64_t block) const { return grads_.data()[block]; }
    // Leaves the sum in block 0.
    void add_up(int threads);

 private:
    int64_t blocks_, per_block_;
    Buffer<T> memory_;
    Buffer<PartialGrads<T>> grads_;
};

// The sum of all blocks' gradients, and with outer features those of the rounds, into args.layers.
template <typename T>
void write_weight_gradients(const LocalActivation& args, const PackedMlp<T>& mlp, const PartialGrads<T>& sum,
                            const OuterRound<T>& outer, int threads);

// Elements of the weight gradients of one block.
template <typename T>
int64_t gradient_size(const LocalActivation& args);

}  // namespace din_kernels::cpu
