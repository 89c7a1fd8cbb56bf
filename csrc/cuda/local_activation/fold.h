// The first layer folded per candidate, z1 = A_i k + c_i, for a chunk of candidates at a time:
//   concat, product: A_i = (Wk - Wd) + Wp diag(q_i)
//   outer:           A_i = Wk + sum_j q_ij Wo[:, j, :]
// and what dA_i, which the backward pass over the tiles leaves in the workspace, means for weights and queries:
//   dWk += dA_i;   dWp += dA_i diag(q_i),   dq_i += sum_h Wp[h] * dA_i[h]
//                  dWo[h, j] += q_ij dA_i[h],   dq_ij += <Wo[:, j, :], dA_i>
#pragma once

#include <algorithm>

#include "local_activation/backward_plan.h"

namespace din_kernels::cuda {

// body(Chunk) for all candidates, in order.
template <typename Body>
void for_chunks(const LocalActivation& call, const FoldPlan& plan, const Body& body) {
    for (int64_t begin = 0; begin < call.queries; begin += plan.chunk)
        body(Chunk{begin, std::min(begin + plan.chunk, call.queries)});
}

// Once per call: Wo packed, for outer features.
void prepare_fold(const LocalActivation& call, const UnitSizes& sizes, const FoldPlan& plan, Stream stream);

// A_i, and for backward A_i^T, of the chunk.
void fold(const LocalActivation& call, const UnitSizes& sizes, const UnitWorkspace& work, const FoldPlan& plan,
          Chunk chunk, Stream stream);

// From dA_i of the chunk: query_gradient [Q, D] of its candidates, and its part of the first layer's weight gradient.
void unfold(const LocalActivation& call, const BackwardPlan& plan, Chunk chunk, Stream stream);

}  // namespace din_kernels::cuda
