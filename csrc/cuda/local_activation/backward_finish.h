// What comes before and after the backward pass over the tiles.
#pragma once

#include "local_activation/backward_plan.h"

namespace din_kernels::cuda {

// Transposed weights; <g, o> + sum_t w_t gw_t per candidate (softmax); Dice's batch statistics as parameters.
void prepare_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream);

// Of a chunk's candidates that several blocks share, the sums of their partials; zeros of those without behaviours.
void join_query_gradients(const LocalActivation& call, const BackwardPlan& plan, Chunk chunk, Stream stream);

// Means of du and du u of a layer, from its sums.
void finish_backward_statistics(const LocalActivation& call, const BackwardPlan& plan, int layer, Stream stream);

// Gradients of queries, weights, biases and parameters from the sums of the blocks, added in the blocks' order.
void finish_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream);

}  // namespace din_kernels::cuda
