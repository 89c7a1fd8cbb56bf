// Sparse optimizer steps without a sort: ids are ranked by a bitmap, entries of one id gathered into a group, and one
// pass sums the group, regularizes and updates.
#include "din_kernels/cuda/sparse_update.h"

#include "common/block_scan.cuh"
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "sparse_update/plan.h"
#include "sparse_update/rules.cuh"
#include "common/table_rows.cuh"
#include "common/unique_ids.cuh"

namespace din_kernels::cuda {
namespace {

constexpr int kWarps = kUpdateThreads / 32;

// Entries by id. Group r holds the entries of the r-th unique id: order[begin[r] .. begin[r] + size[r]).
struct Groups {
    Global<const int64_t> unique;        // [N]
    Global<const int64_t> unique_count;  // [1]
    Global<uint32_t> size;               // [N]
    Global<uint32_t> begin;              // [N]
    Global<uint32_t> ticket;             // [N]: place of an entry in its group
    Global<uint32_t> order;              // [N]: entries
};

__global__ void clear_sizes(Groups groups, int64_t entries) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < entries) groups.size.store(at, 0u);
}

__global__ void draw_tickets(IdArray ids, int64_t rows, Ranks ranks, Groups groups) {
    const int64_t entry = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (entry >= ids.size || !ranks.marked(ids[entry], rows)) return;
    groups.ticket.store(entry, groups.size.atomic_add(ranks[ids[entry]], 1u));
}

__global__ void place_entries(IdArray ids, int64_t rows, Ranks ranks, Groups groups) {
    const int64_t entry = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (entry >= ids.size || !ranks.marked(ids[entry], rows)) return;
    groups.order.store(groups.begin[ranks[ids[entry]]] + groups.ticket[entry], uint32_t(entry));
}

// Entries of every group in ascending order, which tickets do not give. A warp per group: up to kUpdateChunk entries
// count who comes before them, a longer group is filled anew by a walk over all ids, at most N / kUpdateChunk times.
__global__ void sort_groups(IdArray ids, Groups groups) {
    const int lane = int(threadIdx.x) % 32;
    const int64_t group = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (group >= groups.unique_count[0]) return;
    const uint32_t begin = groups.begin[group], size = groups.size[group];
    if (size <= uint32_t(kUpdateChunk)) {
        constexpr int kEach = int(kUpdateChunk) / 32;
        uint32_t entry[kEach], place[kEach] = {};
        for (int i = 0; i < kEach; ++i) {
            const uint32_t at = uint32_t(lane + 32 * i);
            entry[i] = at < size ? groups.order[begin + at] : ~0u;
        }
        for (uint32_t other = 0; other < size; ++other) {
            const uint32_t value = groups.order[begin + other];
            for (int i = 0; i < kEach; ++i) place[i] += value < entry[i] ? 1 : 0;
        }
        __syncwarp();
        for (int i = 0; i < kEach; ++i)
            if (uint32_t(lane + 32 * i) < size) groups.order.store(begin + place[i], entry[i]);
        return;
    }
    const int64_t id = groups.unique[group];
    uint32_t filled = 0;
    for (int64_t first = 0; first < ids.size; first += 32) {
        const int64_t entry = first + lane;
        const unsigned votes = __ballot_sync(~0u, entry < ids.size && ids[entry] == id);
        const uint32_t place = filled + uint32_t(__popc(votes & ((1u << lane) - 1u)));
        if ((votes >> lane & 1u) != 0) groups.order.store(begin + place, uint32_t(entry));
        filled += uint32_t(__popc(votes));
    }
}

template <typename T, int kWidth>
struct Columns {
    float at[kWidth] = {};

    __device__ void add(const Vector<T, kWidth>& row) {
        for (int i = 0; i < kWidth; ++i) at[i] += widen(row.at[i]);
    }
};

// Long groups in parts. Part 0 of chunk c belongs to the group of its first entry, part 1 to that of its last where it
// is another one; parts of short groups stay unwritten.
template <typename T, int kWidth>
__global__ void sum_chunks(IdArray ids, Ranks ranks, Groups groups, Global<const T> grads, int64_t dim,
                           Global<float> partials) {  // [chunks, 2, D]
    const int lane = int(threadIdx.x) % 32;
    const int64_t chunk = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, groups_there = groups.unique_count[0];
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
struct Table {
    int64_t dim;
    Global<T> weight;      // [V, D]
    Global<float> first;   // [V, D], or [V] for row-wise Adagrad, or null
    Global<float> second;  // [V, D] or null
    CountArray counts;
    Global<const T> grads;         // [N, D]
    Global<const float> partials;  // [chunks, 2, D]
};

// Sum of the gradients of group [begin, begin + size) at columns d .. d + kWidth.
template <typename T, int kWidth>
__device__ Columns<T, kWidth> sum_group(const Table<T>& table, const Groups& groups, int64_t begin, int64_t size,
                                        int64_t d) {
    Columns<T, kWidth> sum;
    if (size <= kUpdateChunk) {
        for (int64_t at = begin; at < begin + size; ++at)
            sum.add(table.grads.template load<kWidth>(int64_t(groups.order[at]) * table.dim + d));
        return sum;
    }
    for (int64_t chunk = begin / kUpdateChunk; chunk * kUpdateChunk < begin + size; ++chunk) {
        const int part = chunk * kUpdateChunk >= begin ? 0 : 1;
        for (int i = 0; i < kWidth; ++i) sum.at[i] += table.partials[(2 * chunk + part) * table.dim + d + i];
    }
    return sum;
}

template <typename T, int kWidth>
__global__ void update_rows(Table<T> table, Groups groups, Rule rule) {
    const int lane = int(threadIdx.x) % 32;
    const int64_t group = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (group >= groups.unique_count[0]) return;
    const int64_t id = groups.unique[group], begin = groups.begin[group], size = groups.size[group], dim = table.dim;
    const float count = table.counts ? table.counts[id] : 0.0f;
    const bool rowwise = rule.rule == UpdateRule::kRowwiseAdagrad;
    float row_state = 0;
    if (rowwise) {
        // The step needs the whole row's mean of g^2 first; gradients come from cache the second time.
        float squares = 0;
        for (int64_t d = lane * kWidth; d < dim; d += 32 * kWidth) {
            const Columns<T, kWidth> g = sum_group<T, kWidth>(table, groups, begin, size, d);
            for (int i = 0; i < kWidth; ++i) {
                float w = widen(table.weight[id * dim + d + i]);
                const float regular = regularized(rule, g.at[i], w, count);
                squares += regular * regular;
            }
        }
        row_state = table.first[id] + warp_sum(squares) / float(dim);
        __syncwarp();
        if (lane == 0) table.first.store(id, row_state);
    }
    for (int64_t d = lane * kWidth; d < dim; d += 32 * kWidth) {
        const Columns<T, kWidth> g = sum_group<T, kWidth>(table, groups, begin, size, d);
        const int64_t at = id * dim + d;
        Vector<T, kWidth> weight = table.weight.template load<kWidth>(at);
        Vector<float, kWidth> first{}, second{};
        if (!rowwise && table.first) first = table.first.template load<kWidth>(at);
        if (table.second) second = table.second.template load<kWidth>(at);
        for (int i = 0; i < kWidth; ++i) {
            if (rowwise) first.at[i] = row_state;
            float w = widen(weight.at[i]);
            const float regular = regularized(rule, g.at[i], w, count);
            weight.at[i] = narrow<T>(stepped(rule, w, regular, first.at[i], second.at[i]));
        }
        table.weight.template store<kWidth>(at, weight);
        if (!rowwise && table.first) table.first.template store<kWidth>(at, first);
        if (table.second) table.second.template store<kWidth>(at, second);
    }
}

// Groups of the batch's entries, in the workspace.
Groups group_entries(const SparseUpdate& call, const SparseUpdatePlan& plan, Stream stream) {
    const auto array = [&](int64_t offset) {
        return Global<uint32_t>(carved<uint32_t>(call.workspace, offset), call.entries);
    };
    auto* const unique = carved<int64_t>(call.workspace, plan.unique_ids);
    auto* const unique_count = carved<int64_t>(call.workspace, plan.unique_count);
    unique_ids(plan.unique, call.workspace, call.ids, call.entries, call.rows, call.padding_idx, unique, unique_count,
               stream);
    const Groups groups{Global<const int64_t>(unique, call.entries),
                        Global<const int64_t>(unique_count, 1),
                        array(plan.group_size),
                        array(plan.group_begin),
                        array(plan.ticket),
                        array(plan.order)};
    const IdArray ids{call.ids, call.entries};
    const Ranks ranks(plan.unique, call.workspace);
    const Grid over_entries{ceil_div(call.entries, kUpdateThreads)};
    launch("clear_sizes", clear_sizes, over_entries, kUpdateThreads, 0, stream, groups, call.entries);
    launch("draw_tickets", draw_tickets, over_entries, kUpdateThreads, 0, stream, ids, call.rows, ranks, groups);
    exclusive_scan(carved<uint32_t>(call.workspace, plan.group_size), call.entries,
                   carved<uint32_t>(call.workspace, plan.tile_sums), carved<uint32_t>(call.workspace, plan.group_begin),
                   stream);
    launch("place_entries", place_entries, over_entries, kUpdateThreads, 0, stream, ids, call.rows, ranks, groups);
    if (call.deterministic)
        launch("sort_groups", sort_groups, Grid{ceil_div(call.entries, kWarps)}, kUpdateThreads, 0, stream, ids,
               groups);
    return groups;
}

}  // namespace

int64_t sparse_update_workspace(int64_t rows, int64_t dim, int64_t entries) {
    return plan_sparse_update(rows, dim, entries).bytes;
}

void sparse_update(const SparseUpdate& call, Stream stream) {
    const SparseUpdatePlan plan = plan_sparse_update(call.rows, call.dim, call.entries);
    const Groups groups = group_entries(call, plan, stream);
    const Rule rule{call.rule, call.lr,    call.step,     call.beta1,    call.beta2,
                    call.eps,  call.coeff, call.maximize, call.decoupled};
    auto* const partials = carved<float>(call.workspace, plan.partials);
    const int64_t partials_size = 2 * plan.chunks * call.dim, cells = call.rows * call.dim;
    with_dtype(call.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Global<const T> grads(static_cast<const T*>(call.grads), call.entries * call.dim);
        const Table<T> table{call.dim,
                             Global<T>(static_cast<T*>(call.weight), cells),
                             Global<float>(call.first, call.rule == UpdateRule::kRowwiseAdagrad ? call.rows : cells),
                             Global<float>(call.second, cells),
                             CountArray{call.counts, call.rows},
                             grads,
                             Global<const float>(partials, partials_size)};
        const bool aligned =
            aligned_for<4, T>({call.weight, call.grads}) && aligned_for<4, float>({call.first, call.second});
        with_width(call.dim, aligned, [&](auto width) {
            launch("sum_chunks", sum_chunks<T, width()>, Grid{ceil_div(plan.chunks, kWarps)}, kUpdateThreads, 0, stream,
                   IdArray{call.ids, call.entries}, Ranks(plan.unique, call.workspace), groups, grads, call.dim,
                   Global<float>(partials, partials_size));
            launch("update_rows", update_rows<T, width()>, Grid{ceil_div(call.entries, kWarps)}, kUpdateThreads, 0,
                   stream, table, groups, rule);
        });
    });
}

}  // namespace din_kernels::cuda
