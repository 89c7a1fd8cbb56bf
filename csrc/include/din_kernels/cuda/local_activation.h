// The local activation unit on a GPU; fields in din_kernels/local_activation.h, formulas in docs/architecture.md.
#pragma once

#include "din_kernels/cuda.h"
#include "din_kernels/local_activation.h"

namespace din_kernels::cuda {

// How products are made: FMA in fp32, or tensor cores in tf32; bf16 and fp16 always use tensor cores.
enum class Precision { kHighest, kTensorCores };

// Weights, biases and parameters are of any dtype but kDouble. The gradient of a parameter is [H] where the parameter
// is [1]: the caller adds it up. In place of the gradients of Dice's mean and variance come the sums of du and of du u
// with u = (z - mean) rstd, from which both follow. With query_to_user the history's gradient is added by atomics, in
// no fixed order, to an array that holds zeros.
struct LocalActivation : din_kernels::LocalActivation {
    Precision precision;
    float* grad_pairs;  // [pairs, D] or null: instead of grad_history, the gradient of every pair's row
    int64_t pairs;
    int64_t chunk_bytes;  // of a folded call's matrices per candidate, for as many candidates at a time
    void* workspace;
};

// Launch arithmetic of the kernels over the tiles, for tests and reports.
struct LaunchPlan {
    int rows, stages;  // of a tile; copies on their way
    int threads;
    int64_t blocks, shared_bytes, workspace_bytes;
    bool gradient_in_shared;  // backward: sums of the weights' gradients
    bool folded;              // A_i per candidate, tiles of one candidate each
    int64_t chunk;            // candidates of one launch
};
LaunchPlan local_activation_forward_plan(const LocalActivation& call, const DeviceLimits& device);
LaunchPlan local_activation_backward_plan(const LocalActivation& call, const DeviceLimits& device);

// Bytes of scratch memory; throws LaunchError where the device's shared memory is too small for one tile.
int64_t local_activation_forward_workspace(const LocalActivation& call);
void local_activation_forward(const LocalActivation& call, Stream stream);
int64_t local_activation_backward_workspace(const LocalActivation& call);
void local_activation_backward(const LocalActivation& call, Stream stream);

}  // namespace din_kernels::cuda
