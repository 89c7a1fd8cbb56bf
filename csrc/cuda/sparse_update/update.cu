// Sparse optimizer steps: one pass sums the entries of every id, which groups.cu has gathered, regularizes and updates
// the row.
#include "common/block_scan.cuh"
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/table_rows.cuh"
#include "common/unique_ids.cuh"
#include "din_kernels/cuda/sparse_update.h"
#include "sparse_update/groups.cuh"
#include "sparse_update/plan.h"
#include "sparse_update/rules.cuh"

namespace din_kernels::cuda {
namespace {

template <typename T, int kWidth>
struct Columns {
    float at[kWidth] = {};

    __device__ void add(const Vector<T, kWidth>& row) {
        for (int i = 0; i < kWidth; ++i) at[i] += widen(row.at[i]);
    }
};

// Long groups are summed in parts, a warp per chunk of the entries. Part 0 of a chunk belongs to the group of its first
// entry, part 1 to the group of its last entry where that is another one; parts of short groups stay unwritten:
//
//   chunks    |       0       |       1       |       2       |
//   groups    | a | b |       long group c        | d |  e    |
//   parts       -       1         0               0    -          (- : a short group, summed by update_rows)
template <typename T, int kWidth>
__global__ void sum_chunks(IdArray ids, Ranks ranks, Groups groups, Global<const T> grads, int64_t dim,
                           Global<float> partials) {  // [chunks, 2, D]
    const int lane = int(threadIdx.x) % 32;
    const int64_t chunk = int64_t(blockIdx.x) * kUpdateWarps + threadIdx.x / 32, groups_there = groups.unique_count[0];
    if (groups_there == 0) return;
    const int64_t placed = int64_t(groups.begin[groups_there - 1]) + groups.size[groups_there - 1];
    const int64_t from = chunk * kUpdateChunk, to = from + kUpdateChunk < placed ? from + kUpdateChunk : placed;
    if (from >= to) return;
    const int64_t head = ranks[ids[groups.order[from]]], tail = ranks[ids[groups.order[to - 1]]];
    for (int part = 0; part < (head == tail ? 1 : 2); ++part) {
        const int64_t group = part == 0 ? head : tail, begin = groups.begin[group], size = groups.size[group];
        if (size <= kUpdateChunk) continue;
        const int64_t first = begin > from ? begin : from, last = begin + size < to ? begin + size : to;
        for (int64_t d = lane * kWidth; d < dim; d += 32 * kWidth) {
            Columns<T, kWidth> sum;
            for (int64_t at = first; at < last; ++at)
                sum.add(grads.template load<kWidth>(int64_t(groups.order[at]) * dim + d));
            for (int i = 0; i < kWidth; ++i) partials.store((2 * chunk + part) * dim + d + i, sum.at[i]);
        }
    }
}

template <typename T>
struct Rows {
    int64_t dim;
    Global<T> weight;      // [V, D]
    Global<float> first;   // [V, D], or [V] for row-wise Adagrad, or null
    Global<float> second;  // [V, D] or null
    CountArray counts;
    Global<const T> grads;         // [N, D]
    Global<const float> partials;  // [chunks, 2, D]
};

// Sum of the gradients of the group of entries begin .. begin + size at columns d .. d + kWidth.
template <typename T, int kWidth>
__device__ Columns<T, kWidth> sum_group(const Rows<T>& rows, const Groups& groups, int64_t begin, int64_t size,
                                        int64_t d) {
    Columns<T, kWidth> sum;
    if (size <= kUpdateChunk) {
        for (int64_t at = begin; at < begin + size; ++at)
            sum.add(rows.grads.template load<kWidth>(int64_t(groups.order[at]) * rows.dim + d));
        return sum;
    }
    for (int64_t chunk = begin / kUpdateChunk; chunk * kUpdateChunk < begin + size; ++chunk) {
        const int part = chunk * kUpdateChunk >= begin ? 0 : 1;
        for (int i = 0; i < kWidth; ++i) sum.at[i] += rows.partials[(2 * chunk + part) * rows.dim + d + i];
    }
    return sum;
}

// A warp per unique id updates its row.
template <typename T, int kWidth>
__global__ void update_rows(Rows<T> rows, Groups groups, Rule rule) {
    const int lane = int(threadIdx.x) % 32;
    const int64_t group = int64_t(blockIdx.x) * kUpdateWarps + threadIdx.x / 32;
    if (group >= groups.unique_count[0]) return;
    const int64_t id = groups.unique[group], begin = groups.begin[group], size = groups.size[group], dim = rows.dim;
    const float count = rows.counts ? rows.counts[id] : 0.0f;
    const bool rowwise = rule.rule == UpdateRule::kRowwiseAdagrad;
    float row_state = 0;
    if (rowwise) {
        // The step needs the whole row's mean of g^2 first; gradients come from cache the second time.
        float squares = 0;
        for (int64_t d = lane * kWidth; d < dim; d += 32 * kWidth) {
            const Columns<T, kWidth> g = sum_group<T, kWidth>(rows, groups, begin, size, d);
            for (int i = 0; i < kWidth; ++i) {
                float w = widen(rows.weight[id * dim + d + i]);
                const float regular = regularized(rule, g.at[i], w, count);
                squares += regular * regular;
            }
        }
        row_state = rows.first[id] + warp_sum(squares) / float(dim);
        __syncwarp();
        if (lane == 0) rows.first.store(id, row_state);
    }
    for (int64_t d = lane * kWidth; d < dim; d += 32 * kWidth) {
        const Columns<T, kWidth> g = sum_group<T, kWidth>(rows, groups, begin, size, d);
        const int64_t at = id * dim + d;
        Vector<T, kWidth> weight = rows.weight.template load<kWidth>(at);
        Vector<float, kWidth> first{}, second{};
        if (!rowwise && rows.first) first = rows.first.template load<kWidth>(at);
        if (rows.second) second = rows.second.template load<kWidth>(at);
        for (int i = 0; i < kWidth; ++i) {
            if (rowwise) first.at[i] = row_state;
            float w = widen(weight.at[i]);
            const float regular = regularized(rule, g.at[i], w, count);
            weight.at[i] = narrow<T>(stepped(rule, w, regular, first.at[i], second.at[i]));
        }
        rows.weight.template store<kWidth>(at, weight);
        if (!rowwise && rows.first) rows.first.template store<kWidth>(at, first);
        if (rows.second) rows.second.template store<kWidth>(at, second);
    }
}

}  // namespace

int64_t sparse_update_workspace(int64_t rows, int64_t dim, int64_t entries) {
    return plan_sparse_update(rows, dim, entries).bytes;
}

void sparse_update(const SparseUpdate& call, Stream stream) {
    const SparseUpdatePlan plan = plan_sparse_update(call.rows, call.dim, call.entries);
    const Groups groups = group_entries(call, plan, stream);
    const Rule rule{call.rule,       float(call.lr),    float(call.step), float(call.beta1), float(call.beta2),
                    float(call.eps), float(call.coeff), call.maximize,    call.decoupled};
    auto* const partials = carved<float>(call.workspace, plan.partials);
    const int64_t partials_size = 2 * plan.chunks * call.dim, cells = call.rows * call.dim;
    with_dtype(call.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Global<const T> grads(static_cast<const T*>(call.grads), call.entries * call.dim);
        const Rows<T> rows{
            call.dim,
            Global<T>(static_cast<T*>(call.weight), cells),
            Global<float>(fp32(call.first), call.rule == UpdateRule::kRowwiseAdagrad ? call.rows : cells),
            Global<float>(fp32(call.second), cells),
            CountArray{call.counts, call.rows},
            grads,
            Global<const float>(partials, partials_size)};
        const bool aligned =
            aligned_for<4, T>({call.weight, call.grads}) && aligned_for<4, float>({call.first, call.second});
        with_width(call.dim, aligned, [&](auto width) {
            launch("sum_chunks", sum_chunks<T, width()>, Grid{ceil_div(plan.chunks, kUpdateWarps)}, kUpdateThreads, 0,
                   stream, IdArray{call.ids, call.entries}, Ranks(plan.unique, call.workspace), groups, grads, call.dim,
                   Global<float>(partials, partials_size));
            launch("update_rows", update_rows<T, width()>, Grid{ceil_div(call.entries, kUpdateWarps)}, kUpdateThreads,
                   0, stream, rows, groups, rule);
        });
    });
}

}  // namespace din_kernels::cuda
