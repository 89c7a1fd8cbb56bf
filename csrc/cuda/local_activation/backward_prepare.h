// Launches before the backward pass over the tiles.
#pragma once

#include "local_activation/backward_plan.h"

namespace din_kernels::cuda {

// Packs the transposed weights, and writes <g, o> + sum_t w_t gw_t per candidate (softmax) and Dice's batch statistics
// as parameters.
void prepare_backward(const LocalActivation& call, const BackwardPlan& plan, Stream stream);

}  // namespace din_kernels::cuda
