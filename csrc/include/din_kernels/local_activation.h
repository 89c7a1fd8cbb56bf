// The local activation unit (DIN, section 4.3) as plain C++: pointers and sizes, no torch, no Python.
#pragma once

#include <cstdint>

#include "din_kernels/arrays.h"

namespace din_kernels {

enum class Features { kConcat, kProduct, kOuter };
enum class Activation { kSigmoid, kRelu, kPrelu, kTanh, kIdentity, kDice };
enum class Normalize { kNone, kSoftmax };
enum class Storage { kFloat, kDouble, kBf16, kFp16 };  // the last two are computed in float

constexpr int kMaxHidden = 3;
constexpr int kMaxTables = 8;
constexpr int kMaxParams = 3;

// One layer of the MLP. The output layer has width 1 and no activation.
template <typename T>
struct Layer {
    int64_t width;                   // H of this layer
    const T* weight;                 // [H, in] row-major
    const T* bias;                   // [H]
    const T* params[kMaxParams];     // prelu: slope; dice: alpha, mean, var, or alpha alone in training
    int64_t param_size[kMaxParams];  // H or 1
    double eps;                      // dice
    T* grad_weight;                  // [H, in], backward only
    T* grad_bias;                    // [H]
    T* grad_params[kMaxParams];      // like params
};

// Columns of rows [n, D]: width of them, from values [V, width] by id, or from row n itself.
struct Table {
    const void* values;
    int64_t width;
    Ids ids;  // [n], or no data
};

// Rows [n, D], the tables' columns side by side.
struct Source {
    Table tables[kMaxTables];
    int count;
};

// Gradients of the rows of a Source, per table: values [n, width].
struct RowGrads {
    void* values[kMaxTables];
    bool needed;
};

// Histories are positions begin[u] .. begin[u] + length[u] of rows (or of row_index, which then names the row).
template <typename T>
struct LocalActivationArgs {
    int64_t queries, users, rows_count, dim;
    Storage storage;               // of query, rows and the gradient of rows
    Source query;                  // [Q, D]
    Source rows;                   // [M, D]
    const int64_t* begin;          // [U]
    const int64_t* length;         // [U]
    const int64_t* row_index;      // [capacity] or null
    const bool* row_mask;          // [M] or null; false: counts in Dice's statistics and nowhere else
    const int64_t* query_to_user;  // [Q] or null: candidate i attends to history i
    const int64_t* pair_begin;     // [Q] or null: weights are not returned
    int hidden;                    // hidden layers, 0 .. 3
    Layer<T> layers[kMaxHidden + 1];
    Features features;
    Activation activation;
    bool dice_training;
    Normalize normalize;
    T scale;
    T* pooled;          // [Q, D]
    double* logsumexp;  // [Q], softmax only; double, for scores of any size
    T* pair_weights;    // [total_pairs], zero where no pair lies
    T* statistics;      // [2, sum of hidden widths], dice_training: means, then biased variances
    // backward only
    const T* grad_pooled;        // [Q, D]
    const T* grad_pair_weights;  // [total_pairs] or null
    RowGrads grad_query;         // of T
    RowGrads grad_rows;          // of storage
};

// Both run on `threads` OpenMP threads; results do not depend on the number, bit for bit.
template <typename T>
void local_activation_forward(const LocalActivationArgs<T>& args, int threads);
template <typename T>
void local_activation_backward(const LocalActivationArgs<T>& args, int threads);

}  // namespace din_kernels
