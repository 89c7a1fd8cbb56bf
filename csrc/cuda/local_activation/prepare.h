// Launches before the tiles are computed: they pack weights, write parameters, count the pairs before each candidate
// and make c_i. A folded call needs A_i beside them, see fold.h.
#pragma once

#include "local_activation/plan.h"

namespace din_kernels::cuda {

// `rows` are those of a tile.
void prepare(const LocalActivation& call, const Sizes& sizes, const Workspace& work, int rows, Stream stream);

}  // namespace din_kernels::cuda
