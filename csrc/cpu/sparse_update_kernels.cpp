// One pass over the sorted ids: sums the gradients of a row, regularizes it and updates it. Compiled once per ISA;
// exports two tables and nothing else.
#include "sorted_ids.h"
#include "sparse_update_rules.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

template <typename T>
inline int64_t end_of_block(const SparseUpdateArgs<T>& a, int64_t block) {
    const int64_t end = (block + 1) * kUpdateBlock;
    return end < a.entries ? end : a.entries;
}

// The gradient of the entry that is due kAhead entries from now, and what its row needs if it is the row's first.
template <int kStates, typename T>
inline void prefetch_entry(const UpdateCall<T>& call, int64_t entry) {
    const SparseUpdateArgs<T>& a = *call.args;
    entry += kAhead;
    if (entry >= a.entries) return;
    const int64_t bytes = a.dim * int64_t(sizeof(T)), id = id_of(call.keys[entry]);
    prefetch(a.grads + position_of(call.keys[entry]) * a.dim, bytes);
    if (kStates < 0 || id == id_of(call.keys[entry - 1])) return;
    prefetch(a.weight + id * a.dim, bytes);
    if (kStates > 0) prefetch(a.first + id * a.dim, bytes);
    if (kStates > 1) prefetch(a.second + id * a.dim, bytes);
    if (kStates == 0 && a.first) __builtin_prefetch(a.first + id);
    if (a.counts.data) prefetch_count(a.counts, id);
}

// out[0 .. kVectors) = sum of the vectors at column `column` of entries [from, to), in registers.
template <int kVectors, int kStates, bool kPrefetch, typename T>
inline void sum_columns(const UpdateCall<T>& call, int64_t from, int64_t to, int64_t column, T* out) {
    const SparseUpdateArgs<T>& a = *call.args;
    Vec<T> total[kVectors] = {};
    for (int64_t entry = from; entry < to; ++entry) {
        if (kPrefetch) prefetch_entry<kStates>(call, entry);
        const T* row = a.grads + position_of(call.keys[entry]) * a.dim + column;
        for (int v = 0; v < kVectors; ++v) total[v] += load(row + v * kLanes<T>);
    }
    for (int v = 0; v < kVectors; ++v) store(out + column + v * kLanes<T>, total[v]);
}

// out [D] = sum of the gradients of entries [from, to). kStates < 0: prefetches gradients alone.
template <int kStates, typename T>
void sum_entries(const UpdateCall<T>& call, int64_t from, int64_t to, T* out) {
    const SparseUpdateArgs<T>& a = *call.args;
    int64_t column = 0;
    const auto left = [&] { return a.dim - column; };
    constexpr int64_t kLane = kLanes<T>;
    // The first sweep over the entries prefetches.
    if (left() >= 8 * kLane) {
        sum_columns<8, kStates, true>(call, from, to, column, out), column += 8 * kLane;
    } else if (left() >= 4 * kLane) {
        sum_columns<4, kStates, true>(call, from, to, column, out), column += 4 * kLane;
    } else {
        for (int64_t entry = from; entry < to; ++entry) prefetch_entry<kStates>(call, entry);
    }
    while (left() >= 8 * kLane) sum_columns<8, 0, false>(call, from, to, column, out), column += 8 * kLane;
    if (left() >= 4 * kLane) sum_columns<4, 0, false>(call, from, to, column, out), column += 4 * kLane;
    if (left() >= 2 * kLane) sum_columns<2, 0, false>(call, from, to, column, out), column += 2 * kLane;
    if (left() >= kLane) sum_columns<1, 0, false>(call, from, to, column, out), column += kLane;
    if (column == a.dim) return;
    for (int64_t d = column; d < a.dim; ++d) out[d] = 0;
    for (int64_t entry = from; entry < to; ++entry) {
        const T* row = a.grads + position_of(call.keys[entry]) * a.dim;
        for (int64_t d = column; d < a.dim; ++d) out[d] += row[d];
    }
}

// End of the run of equal ids that `from` lies in, at most `end`.
inline int64_t end_of_run(const uint64_t* keys, int64_t from, int64_t end) {
    const int64_t id = id_of(keys[from]);
    while (from < end && id_of(keys[from]) == id) ++from;
    return from;
}

template <typename T>
void partial(const UpdateCall<T>& call, int64_t block) {
    const int64_t from = block * kUpdateBlock;
    if (from == 0 || id_of(call.keys[from]) != id_of(call.keys[from - 1])) return;
    if (id_of(call.keys[from]) == call.args->padding_idx) return;
    const int64_t to = end_of_run(call.keys, from, end_of_block(*call.args, block));
    sum_entries<-1>(call, from, to, call.partials + block * call.args->dim);
}

// Sign and regularizer of g, then the rule.
template <typename Rule, typename T>
inline void update_row(const SparseUpdateArgs<T>& a, int64_t id, T* __restrict g) {
    T* __restrict weight = a.weight + id * a.dim;
    if (a.maximize)
        for (int64_t d = 0; d < a.dim; ++d) g[d] = -g[d];
    if (a.counts.data) {
        const double decay = a.coeff / count_of(a.counts, id);
        if (a.decoupled) {
            const T shrink = T(a.lr * decay);
            for (int64_t d = 0; d < a.dim; ++d) weight[d] -= shrink * weight[d];
        } else {
            const T pull = T(decay);
            for (int64_t d = 0; d < a.dim; ++d) g[d] += pull * weight[d];
        }
    }
    const int64_t state = Rule::kStates == 0 ? id : id * a.dim;
    T* first = a.first ? a.first + state : nullptr;
    T* second = a.second ? a.second + state : nullptr;
    Rule::apply(a.dim, weight, first, second, g, Constants<T>{T(a.step), T(a.beta1), T(a.beta2), T(a.eps)});
}

// Updates the rows whose first entry lies in `block`.
template <typename Rule, typename T>
void update_block(const UpdateCall<T>& call, int64_t block, T* row) {
    const SparseUpdateArgs<T>& a = *call.args;
    const uint64_t* keys = call.keys;
    int64_t entry = block * kUpdateBlock;
    const int64_t end = end_of_block(a, block);
    if (entry > 0 && id_of(keys[entry]) == id_of(keys[entry - 1])) entry = end_of_run(keys, entry, end);
    for (int64_t stop; entry < end; entry = stop) {
        const int64_t id = id_of(keys[entry]);
        stop = end_of_run(keys, entry, end);
        if (id == a.padding_idx) continue;
        sum_entries<Rule::kStates>(call, entry, stop, row);
        if (stop == end)
            for (int64_t later = block + 1; later * kUpdateBlock < a.entries && id_of(keys[later * kUpdateBlock]) == id;
                 ++later)
                for (int64_t d = 0; d < a.dim; ++d) row[d] += call.partials[later * a.dim + d];
        update_row<Rule>(a, id, row);
    }
}

template <typename T>
void update(const UpdateCall<T>& call, int64_t block, T* row) {
    switch (call.args->rule) {
        case UpdateRule::kSgd:
            return update_block<Sgd>(call, block, row);
        case UpdateRule::kMomentum:
            return update_block<Momentum>(call, block, row);
        case UpdateRule::kNesterov:
            return update_block<Nesterov>(call, block, row);
        case UpdateRule::kAdagrad:
            return update_block<Adagrad>(call, block, row);
        case UpdateRule::kRowwiseAdagrad:
            return update_block<RowwiseAdagrad>(call, block, row);
        case UpdateRule::kAdam:
            return update_block<Adam>(call, block, row);
    }
}

}  // namespace

extern const UpdateKernels<float> sparse_update_float = {partial<float>, update<float>};
extern const UpdateKernels<double> sparse_update_double = {partial<double>, update<double>};

}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
