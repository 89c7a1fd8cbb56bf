// The local activation unit on a GPU; formulas in docs/architecture.md, layouts in din_kernels/local_activation.h.
#pragma once

#include "din_kernels/cuda.h"
#include "din_kernels/local_activation.h"
#include "din_kernels/sparse_update.h"

namespace din_kernels::cuda {

struct TypedArray {
    const void* data;
    DType dtype;
    int64_t size;
};

// How products are made: FMA in fp32, or tensor cores in tf32; bf16 and fp16 always use tensor cores.
enum class Precision { kHighest, kTensorCores };

constexpr int kMaxTables = 8;

// Rows [n, D]: one table and no ids, or rows of several tables side by side.
struct RowTables {
    int tables;
    const void* data[kMaxTables];  // [V_k, D_k]
    int64_t rows[kMaxTables];      // V_k
    int64_t width[kMaxTables];     // D_k
    Ids ids[kMaxTables];           // [n], or null data
};

struct UnitLayer {
    int64_t width;         // H; of the output layer 1
    TypedArray weight;     // [H, in]
    TypedArray bias;       // [H]
    TypedArray params[3];  // prelu: slope; dice: alpha, mean, var; [H] or [1]
    double eps;            // dice
    float* grad_weight;    // [H, in], backward only
    float* grad_bias;      // [H]
    // [H] or null; of parameters [1] the caller adds them up. u = (z - mean) rstd of Dice: the sums of du and du u,
    // from which the gradients of mean and var follow.
    float *grad_param, *grad_u, *grad_u_u;
};

struct LocalActivation {
    DType dtype;
    Precision precision;
    int64_t queries, users, rows_count, capacity, dim;  // Q, U, M, rows or entries of row_index, D
    RowTables query, rows;
    const int64_t* begin;          // [U]
    const int64_t* length;         // [U]
    const int64_t* row_index;      // [capacity] or null
    const bool* row_mask;          // [M] or null; false: counts in Dice's statistics and nowhere else
    const int64_t* query_to_user;  // [Q] or null
    const int64_t* pair_begin;     // [Q] or null
    int64_t total_pairs;
    int hidden;
    UnitLayer layers[kMaxHidden + 1];
    Features features;
    Activation activation;
    Normalize normalize;
    bool dice_training;
    float scale;
    void* pooled;         // [Q, D]
    double* logsumexp;    // [Q], softmax; double, for scores of any size
    float* pair_weights;  // [total_pairs], zeros where no pair lies
    float* statistics;    // [2, sum of hidden widths], dice in training: written by forward, read by backward
    // backward only
    const void* grad_pooled;         // [Q, D]
    const float* grad_pair_weights;  // [total_pairs] or null
    void* grad_query;                // [Q, D] or null
    // [M, D], zeros, or null: of dtype; with query_to_user of fp32, added by atomics in no fixed order.
    void* grad_rows;
    float* grad_pairs;  // [pairs, D] or null: instead of grad_rows, the gradient of every pair's row
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
