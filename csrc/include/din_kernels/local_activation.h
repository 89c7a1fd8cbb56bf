// The local activation unit (DIN, section 4.3) as plain C++: what a call is, on a CPU and on a GPU. No torch, no
// Python.
#pragma once

#include <cstdint>

#include "din_kernels/arrays.h"

namespace din_kernels {

enum class Features { kConcat, kProduct, kOuter };
constexpr Named<Features> kFeatures[] = {
    {"concat", Features::kConcat}, {"product", Features::kProduct}, {"outer", Features::kOuter}};

enum class Activation { kSigmoid, kRelu, kPrelu, kTanh, kSilu, kIdentity, kDice };
constexpr Named<Activation> kActivations[] = {{"sigmoid", Activation::kSigmoid}, {"relu", Activation::kRelu},
                                              {"prelu", Activation::kPrelu},     {"tanh", Activation::kTanh},
                                              {"silu", Activation::kSilu},       {"identity", Activation::kIdentity},
                                              {"dice", Activation::kDice}};

enum class Normalize { kNone, kSoftmax };
constexpr Named<Normalize> kNormalizations[] = {{"none", Normalize::kNone}, {"softmax", Normalize::kSoftmax}};

constexpr int kMaxHidden = 3;
constexpr int kMaxTables = 8;
constexpr int kMaxParams = 3;

// Parameters of an activation per hidden layer. PReLU has a slope. Dice has alpha, mean and variance, or alpha alone
// where its statistics are those of the batch. din_kernels/options.py says the same in Python.
constexpr int params_per_layer(Activation activation, bool dice_training) {
    return activation == Activation::kPrelu ? 1 : activation != Activation::kDice ? 0 : dice_training ? 1 : 3;
}

// One layer of the MLP. The output layer has width 1 and no activation.
struct Layer {
    int64_t width;                  // H of this layer
    TypedArray weight;              // [H, in] row-major
    TypedArray bias;                // [H]
    TypedArray params[kMaxParams];  // as params_per_layer says, [H] or [1] each
    double eps;                     // of Dice
    // Backward alone, of the arithmetic type.
    void* grad_weight;              // [H, in]
    void* grad_bias;                // [H]
    void* grad_params[kMaxParams];  // like params
};

// `width` columns of rows [n, D]: row n is row ids[n] of `values`, or without ids row n itself.
struct Table {
    const void* values;  // [V, width]
    int64_t rows;        // V
    int64_t width;
    Ids ids;  // [n], or no data
};

// Rows [n, D]: the tables' columns side by side.
//
//               tables[0]          tables[1]
//     row n   | values[ids[n], :] | values[ids[n], :] |
//             |<---- width ------>|<---- width ------>|
//             |<----------------- D ----------------->|
struct Source {
    Table tables[kMaxTables];
    int count;
};

// Gradients of the rows of a Source: on a CPU one array [n, width] per table, on a GPU one [n, D].
struct RowGrads {
    void* values[kMaxTables];
    bool needed;
};

// A call. History u is positions begin[u] .. begin[u] + length[u] of `history`, or of row_index, which then names the
// rows:
//
//     history     |  user 0  |    user 1    |  ...      packed: begin = offsets, length = their differences
//     history     | user 0 ..| user 1 ......|           padded: begin = u T (right) or (u + 1) T - length (left)
//     row_index   | rows of user 0 | rows of user 1 |   masked: the valid rows of [U, T], one user's behind the other's
//
// Kernels compute in float, or for dtype kDouble in double; this is the arithmetic type.
struct LocalActivation {
    DType dtype;                                          // of query, history and the history's gradient
    int64_t queries, users, history_rows, capacity, dim;  // Q, U, M, positions (M, or entries of row_index), D
    Source query;                                         // [Q, D]
    Source history;                                       // [M, D]
    const int64_t* begin;                                 // [U]
    const int64_t* length;                                // [U]
    const int64_t* row_index;                             // [capacity] or null
    const bool* row_mask;          // [M] or null; a row that is false enters Dice's statistics and nothing else
    const int64_t* query_to_user;  // [Q] or null: candidate i attends to history i
    const int64_t* pair_begin;     // [Q] or null: weights are not returned
    int64_t total_pairs;
    int hidden;  // hidden layers, 0 .. kMaxHidden
    Layer layers[kMaxHidden + 1];
    Features features;
    Activation activation;
    bool dice_training;
    Normalize normalize;
    double scale;
    void* pooled;        // [Q, D]: on a CPU of the arithmetic type, on a GPU of dtype
    double* logsumexp;   // [Q], softmax only; double, for scores of any size
    void* pair_weights;  // [total_pairs] of the arithmetic type, zero where no pair lies
    void* statistics;    // [2, sum of hidden widths] with dice_training: means, then biased variances; arithmetic type
    // Backward alone.
    const void* grad_pooled;        // like pooled
    const void* grad_pair_weights;  // like pair_weights, or null
    RowGrads grad_query;            // on a CPU of the arithmetic type, on a GPU of dtype
    RowGrads grad_history;          // of dtype; on a GPU fp32 where candidates share histories
};

// On the CPU; weights, biases and parameters are of the arithmetic type. Both run on `threads` OpenMP threads; results
// do not depend on the number, bit for bit.
void local_activation_forward(const LocalActivation& call, int threads);
void local_activation_backward(const LocalActivation& call, int threads);

}  // namespace din_kernels
