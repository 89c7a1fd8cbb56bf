// The first layer folded per candidate, z1 = A_i k + c_i, for a chunk of candidates at a time:
//   concat, product: A_i = (Wk - Wd) + Wp diag(q_i)
//   outer:           A_i = Wk + sum_j q_ij Wo[:, j, :]
// The backward pass over the tiles leaves dA_i in the workspace, from which the gradients of weights and queries
// follow:
//   dWk += dA_i;   concat, product: dWp += dA_i diag(q_i),       dq_i += sum_h Wp[h] * dA_i[h]
//                  outer:           dWo[h, j] += q_ij dA_i[h],   dq_ij += <Wo[:, j, :], dA_i>
//
//   chunk 0:  fold | tiles (forward or backward) | join | unfold,   chunk 1:  fold | tiles | ...
#pragma once

#include <algorithm>

#include "local_activation/backward_plan.h"

namespace din_kernels::cuda {

// Calls body(Chunk) for all candidates, in order.
template <typename Body>
void for_chunks(const LocalActivation& call, const FoldPlan& plan, const Body& body) {
    for (int64_t begin = 0; begin < call.queries; begin += plan.chunk)
        body(Chunk{begin, std::min(begin + plan.chunk, call.queries)});
}

// Packs Wo of outer features, once per call.
void prepare_fold(const LocalActivation& call, const Sizes& sizes, const FoldPlan& plan, Stream stream);

// Makes A_i, and for backward A_i^T, of the chunk.
void fold(const LocalActivation& call, const Sizes& sizes, const Workspace& work, const FoldPlan& plan, Chunk chunk,
          Stream stream);

// Writes query_gradient [Q, D] of the chunk's candidates, and its part of the gradient of the first layer's weight,
// from dA_i.
void unfold(const LocalActivation& call, const BackwardPlan& plan, Chunk chunk, Stream stream);

}  // namespace din_kernels::cuda
