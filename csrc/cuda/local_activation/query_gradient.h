// The gradient of the queries and of the first layer's weight of them, once dc_i and the other part of dq_i are there.
#pragma once

#include "local_activation/backward_plan.h"

namespace din_kernels::cuda {

// Writes grad_query, if it is asked for, and the blocks' sums of the gradient of weight_q.
void finish_queries(const LocalActivation& call, const BackwardPlan& plan, Stream stream);

}  // namespace din_kernels::cuda
