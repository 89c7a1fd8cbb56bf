// Groups the entries of a batch by id: ids are ranked by a bitmap, every entry draws a ticket in the group of its id,
// and a scan of the groups' sizes says where each group begins.
#include "sparse_update/groups.cuh"

#include "common/launch.cuh"
#include "common/table_rows.cuh"
#include "common/unique_ids.cuh"

namespace din_kernels::cuda {
namespace {

__global__ void clear_sizes(Groups groups, int64_t entries) {
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < entries) groups.size.store(at, 0u);
}

// Every entry draws its place in its group.
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

// Brings the entries of every group into ascending order, which tickets do not give. A warp per group: up to
// kUpdateChunk entries count who comes before them. A longer group is filled anew by a walk over all ids; there are at
// most N / kUpdateChunk such groups.
__global__ void sort_groups(IdArray ids, Groups groups) {
    const int lane = int(threadIdx.x) % 32;
    const int64_t group = int64_t(blockIdx.x) * kUpdateWarps + threadIdx.x / 32;
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

}  // namespace

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
        launch("sort_groups", sort_groups, Grid{ceil_div(call.entries, kUpdateWarps)}, kUpdateThreads, 0, stream, ids,
               groups);
    return groups;
}

}  // namespace din_kernels::cuda
