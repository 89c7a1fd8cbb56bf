// The local activation unit (DIN, section 4.3) as plain C++: pointers and sizes, no torch, no Python.
#pragma once

#include <cstdint>

namespace din_kernels {

enum class Features { kConcat, kProduct };
enum class Activation { kSigmoid, kRelu, kPrelu, kTanh, kIdentity, kDice };
enum class Normalize { kNone, kSoftmax };

constexpr int kMaxHidden = 3;

// One layer of the MLP. The output layer has width 1 and no activation.
template <typename T>
struct Layer {
    int64_t width;       // H of this layer
    const T* weight;     // [H, in] row-major
    const T* bias;       // [H]
    const T* params[3];  // prelu: slope; dice: alpha, mean, var; each [H] or [1]
    int64_t param_size;  // H or 1
    double eps;          // dice
    T* grad_weight;      // [H, in], backward only
    T* grad_bias;        // [H]
    T* grad_params[3];   // like params
};

// Histories are positions begin[u] .. begin[u] + length[u] of rows (or of row_index, which then names the row).
template <typename T>
struct LocalActivationArgs {
    int64_t queries, users, rows_count, dim;
    const T* query;                // [Q, D]
    const T* rows;                 // [M, D]
    const int64_t* begin;          // [U]
    const int64_t* length;         // [U]
    const int64_t* row_index;      // [capacity] or null
    const int64_t* query_to_user;  // [Q] or null: candidate i attends to history i
    const int64_t* pair_begin;     // [Q] or null: weights are not returned
    int hidden;                    // hidden layers, 0 .. 3
    Layer<T> layers[kMaxHidden + 1];
    Features features;
    Activation activation;
    Normalize normalize;
    T scale;
    T* pooled;        // [Q, D]
    T* logsumexp;     // [Q], softmax only
    T* pair_weights;  // [total_pairs], zero where no pair lies
    // backward only
    const T* grad_pooled;        // [Q, D]
    const T* grad_pair_weights;  // [total_pairs] or null
    T* grad_query;               // [Q, D] or null
    T* grad_rows;                // [M, D] or null
};

// Both run on `threads` OpenMP threads; results do not depend on the number, bit for bit.
template <typename T>
void local_activation_forward(const LocalActivationArgs<T>& args, int threads);
template <typename T>
void local_activation_backward(const LocalActivationArgs<T>& args, int threads);

}  // namespace din_kernels
