// The MLP in the layouts that kernels read, and its gradients back in those of torch.nn.Linear. Compiled once.
#pragma once

#include <cstdint>

#include "common/buffer.h"
#include "local_activation/call.h"

namespace din_kernels::cpu {

// Parameters per hidden layer that kernels read: a slope (PReLU), alpha, mean and inverse deviation (Dice).
template <typename T>
int packed_params(const LocalActivationArgs<T>& args) {
    return args.activation == Activation::kPrelu ? 1 : args.activation == Activation::kDice ? 3 : 0;
}

template <typename T>
class PackedWeights {
 public:
    PackedMlp<T> mlp{};

    PackedWeights(const LocalActivationArgs<T>& args, int lanes, bool backward, int threads);

    // Dice in training: mean and biased variance [H] of a hidden layer.
    void set_statistics(const LocalActivationArgs<T>& args, int layer, const T* mean, const T* var);
    // Gradients [H] of the mean and the variance of `count` pairs.
    void set_through_statistics(int layer, const T* grad_mean, const T* grad_var, int64_t count);

 private:
    Buffer<T> memory_;

    template <typename Take>
    void lay_out(const LocalActivationArgs<T>& args, bool backward, Take take);
    void pack_first(const LocalActivationArgs<T>& args, bool backward);
    void pack_outer(const LocalActivationArgs<T>& args, bool backward, int threads);
    void pack_layer(const LocalActivationArgs<T>& args, int layer, bool backward);
};

// Weight gradients of every block, and their sum in the order of the blocks.
template <typename T>
class BlockGradients {
 public:
    BlockGradients(const LocalActivationArgs<T>& args, const PackedMlp<T>& mlp, int64_t blocks);

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
void write_weight_gradients(const LocalActivationArgs<T>& args, const PackedMlp<T>& mlp, const PartialGrads<T>& sum,
                            const OuterRound<T>& outer, int threads);

// Elements of the weight gradients of one block.
template <typename T>
int64_t gradient_size(const LocalActivationArgs<T>& args);

}  // namespace din_kernels::cpu
