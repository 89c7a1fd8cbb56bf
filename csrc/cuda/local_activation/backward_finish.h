// Launches behind a backward pass over the tiles add the sums of several blocks, in the blocks' order.
#pragma once

#include "local_activation/backward_plan.h"

namespace din_kernels::cuda {

// Adds the partials of a chunk's candidates that several blocks share, and writes zeros for those without behaviours.
void join_candidate_gradients(const LocalActivation& call, const BackwardPlan& plan, Chunk chunk, Stream stream);

// Writes the means of du and du u of a layer, from its sums.
void finish_backward_statistics(const LocalActivation& call, const BackwardPlan& plan, int layer, Stream stream);

// Writes the gradients of queries, weights, biases and parameters, from the sums of the blocks.
void finish_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream);

}  // namespace din_kernels::cuda
