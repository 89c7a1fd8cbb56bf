// Launches behind a forward pass over the tiles add the sums of several blocks, in the blocks' order.
#pragma once

#include "local_activation/forward_plan.h"

namespace din_kernels::cuda {

// Writes the pooled rows of a chunk's candidates that several blocks share, and of those without behaviours (0).
void join_pooled(const LocalActivation& call, const ForwardPlan& plan, Chunk chunk, Stream stream);

// Turns scores into the weights of a softmax.
void normalize_pair_weights(const LocalActivation& call, const ForwardPlan& plan, Stream stream);

// Writes Dice's mean and variance of a layer to call.statistics, and mean and rstd to the layer's parameters.
void finish_statistics(const LocalActivation& call, const ForwardPlan& plan, int layer, Stream stream);

}  // namespace din_kernels::cuda
