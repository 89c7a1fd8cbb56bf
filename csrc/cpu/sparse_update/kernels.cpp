// One pass over the sorted ids: sums the gradients of a row, regularizes it and updates it. Compiled once per ISA;
// exports one table and nothing else.
#include "common/sorted_ids.h"
#include "common/storage.h"
#include "sparse_update/rules.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

inline int64_t end_of_block(const SparseUpdate& a, int64_t block) {
    const int64_t end = (block + 1) * kUpdateBlock;
    return end < a.entries ? end : a.entries;
}

// The gradient of the entry that is due kAhead entries from now, and what its row needs if it is the row's first.
template <int kStates, typename S>
DIN_KERNELS_PREFETCHES void prefetch_entry(const UpdateCall<S>& call, int64_t entry) {
    const SparseUpdate& a = call.args;
    entry += kAhead;
    if (entry >= a.entries) return;
    const int64_t bytes = a.dim * int64_t(sizeof(S)), state_bytes = a.dim * int64_t(sizeof(Wide<S>));
    const int64_t id = id_of(call.keys[entry]);
    prefetch(call.grads + position_of(call.keys[entry]) * a.dim, bytes);
    if (kStates < 0 || id == id_of(call.keys[entry - 1])) return;
    prefetch(call.weight + id * a.dim, bytes);
    if (kStates > 0) prefetch(call.first + id * a.dim, state_bytes);
    if (kStates > 1) prefetch(call.second + id * a.dim, state_bytes);
    if (kStates == 0 && call.first) __builtin_prefetch(call.first + id);
    if (a.counts.data) prefetch_count(a.counts, id);
}

// out[0 .. kVectors) = sum of the vectors at column `column` of entries [from, to), in registers.
template <int kVectors, int kStates, bool kPrefetch, typename S>
inline void sum_columns(const UpdateCall<S>& call, int64_t from, int64_t to, int64_t column, Wide<S>* out) {
    using T = Wide<S>;
    const SparseUpdate& a = call.args;
    Vec<T> total[kVectors] = {};
    for (int64_t entry = from; entry < to; ++entry) {
        if (kPrefetch) prefetch_entry<kStates>(call, entry);
        const S* row = call.grads + position_of(call.keys[entry]) * a.dim + column;
        for (int v = 0; v < kVectors; ++v) total[v] += load_wide(row + v * kLanes<T>);
    }
    for (int v = 0; v < kVectors; ++v) store(out + column + v * kLanes<T>, total[v]);
}

// out [D] = sum of the gradients of entries [from, to). kStates < 0: prefetches gradients alone.
template <int kStates, typename S>
void sum_entries(const UpdateCall<S>& call, int64_t from, int64_t to, Wide<S>* out) {
    const SparseUpdate& a = call.args;
    int64_t column = 0;
    const auto left = [&] { return a.dim - column; };
    constexpr int64_t kLane = kLanes<Wide<S>>;
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
        const S* row = call.grads + position_of(call.keys[entry]) * a.dim;
        for (int64_t d = column; d < a.dim; ++d) out[d] += widen(row[d]);
    }
}

// End of the run of equal ids that `from` lies in, at most `end`.
inline int64_t end_of_run(const uint64_t* keys, int64_t from, int64_t end) {
    const int64_t id = id_of(keys[from]);
    while (from < end && id_of(keys[from]) == id) ++from;
    return from;
}

template <typename S>
void partial(const UpdateCall<S>& call, int64_t block) {
    const int64_t from = block * kUpdateBlock;
    if (from == 0 || id_of(call.keys[from]) != id_of(call.keys[from - 1])) return;
    if (id_of(call.keys[from]) == call.args.padding_idx) return;
    const int64_t to = end_of_run(call.keys, from, end_of_block(call.args, block));
    sum_entries<-1>(call, from, to, call.partials + block * call.args.dim);
}

// The rule on a row of weights in Wide<S>, given the sum g [D] of its gradients.
template <typename Rule, typename S, typename T>
inline void update_weights(const UpdateCall<S>& call, int64_t id, T* __restrict weight, T* __restrict g) {
    const SparseUpdate& a = call.args;
    const double decay = a.counts.data ? a.coeff / count_of(a.counts, id) : 0;
    Constants<T> constants{T(a.step), T(a.beta1), T(a.beta2), T(a.eps), T(a.maximize ? -1 : 1), T(decay), T(1)};
    if (a.decoupled) constants.pull = 0, constants.keep = T(1 - a.lr * decay);
    const int64_t state = Rule::kStates == 0 ? id : id * a.dim;
    T* first = call.first ? call.first + state : nullptr;
    T* second = call.second ? call.second + state : nullptr;
    Rule::apply(a.dim, weight, first, second, g, constants);
}

// scratch [2, D]: the sum of the gradients, and room for a row of narrow weights.
template <typename Rule, typename S>
inline void update_row(const UpdateCall<S>& call, int64_t id, Wide<S>* scratch) {
    const int64_t dim = call.args.dim;
    S* row = call.weight + id * dim;
    if constexpr (std::is_same_v<S, Wide<S>>) {
        update_weights<Rule>(call, id, row, scratch);
    } else {
        widen_row(row, dim, scratch + dim);
        update_weights<Rule>(call, id, scratch + dim, scratch);
        narrow_row(scratch + dim, dim, row);
    }
}

// Updates the rows whose first entry lies in `block`.
template <typename Rule, typename S>
void update_block(const UpdateCall<S>& call, int64_t block, Wide<S>* row) {
    const SparseUpdate& a = call.args;
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
        update_row<Rule>(call, id, row);
    }
}

template <typename S>
void update(const UpdateCall<S>& call, int64_t block, Wide<S>* row) {
    switch (call.args.rule) {
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

template <typename S>
constexpr UpdateKernels<S> kKernels = {partial<S>, update<S>};

}  // namespace

extern const KernelTable<UpdateKernels> sparse_update_kernels = {kKernels<float>, kKernels<double>, kKernels<BFloat16>,
                                                                 kKernels<Float16>};

}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
