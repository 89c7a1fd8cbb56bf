// What follows a pass over the tiles: sums of several blocks, in the blocks' order.
#pragma once

#include "local_activation/plan.h"

namespace din_kernels::cuda {

// Pooled rows of a chunk's candidates that several blocks share, and of those without behaviours (0).
void join_pooled(const LocalActivation& call, const ForwardPlan& plan, Chunk chunk, Stream stream);

// Scores become the weights of a softmax.
void normalize_pair_weights(const LocalActivation& call, const ForwardPlan& plan, Stream stream);

// Dice's mean and variance of a layer: to call.statistics, and as mean and rstd to the layer's parameters.
void finish_statistics(const LocalActivation& call, const ForwardPlan& plan, int layer, Stream stream);

}  // namespace din_kernels::cuda
