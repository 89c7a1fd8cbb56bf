// The schedule says which block computes which pairs. The pairs of a launch's candidates lie in one row of slots, which
// is cut into tiles, and every block has a range of consecutive tiles. A flat call has one slot per pair. A folded call
// gives whole tiles to every candidate, the last of them filled up with slots that have no pair (dots), so that a tile
// belongs to one candidate:
//
//   tiles of `rows` slots  |    0    |    1    |    2    |    3    |    4    |
//   candidates, flat       | 0           | 1 |   2       | 3               |
//   candidates, folded     | 0       | 0.......| 1.......| 2       | 2.......|
//   ranges                 |      block 0      |      block 1      | block 2 |
//
// So a candidate lies in consecutive blocks. A block that holds only a part of a candidate leaves that part in its
// partials, and a launch behind it joins the parts in the blocks' order. Partial 0 of a block belongs to the candidate
// that began before its range, partial 1 to the one that goes on behind it:
//
//   candidates, flat       block 0: all of 0, all of 1, the front of 2 in partial 1
//                          block 1: the rest of 2 in partial 0, the front of 3 in partial 1
//                          block 2: the rest of 3 in partial 0
#pragma once

#include "common/accessors.cuh"
#include "local_activation/plan.h"

namespace din_kernels::cuda {

struct Slots {
    int64_t begin, end;           // candidates of the launch
    Global<const int64_t> first;  // [Q + 1]: slots before each candidate

    __device__ int64_t before(int64_t candidate) const { return first[candidate] - first[begin]; }
    __device__ int64_t total() const { return before(end); }
    // A candidate's rows are first_row .. last_row of a tile of `valid` rows from `slot` on.
    __device__ int first_row(int64_t candidate, int64_t slot) const {
        const int64_t first = before(candidate) - slot;
        return first > 0 ? int(first) : 0;
    }
    __device__ int last_row(int64_t candidate, int64_t slot, int valid) const {
        const int64_t last = before(candidate + 1) - slot;
        return last < valid ? int(last) : valid;
    }
};

inline Slots slots_of(const LocalActivation& call, const Workspace& work, Chunk chunk) {
    return {chunk.begin, chunk.end,
            Global<const int64_t>(carved<int64_t>(call.workspace, work.slot_first), call.queries + 1)};
}

// Candidates, histories and pairs of a call.
struct Pairs {
    Slots slots;
    Global<const int64_t> begin;          // [U]
    Global<const int64_t> length;         // [U]
    Global<const int64_t> row_index;      // [capacity] or null
    Global<const bool> row_mask;          // [M] or null; false: the row is in Dice's statistics and nowhere else
    Global<const int64_t> query_to_user;  // [Q] or null

    __device__ int64_t user(int64_t candidate) const { return query_to_user ? query_to_user[candidate] : candidate; }
    // Row of the pair at `position` of the candidate's history.
    __device__ int64_t row(int64_t position, int64_t candidate) const {
        const int64_t at = begin[user(candidate)] + position;
        return row_index ? row_index[at] : at;
    }
    __device__ bool has_weight(int64_t row) const { return !row_mask || row_mask[row]; }
    // The candidate among from .. end that `slot` belongs to.
    __device__ int64_t find(int64_t slot, int64_t from) const {
        int64_t low = from, high = slots.end;  // before(low) <= slot < before(high)
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            if (slots.before(middle) <= slot)
                low = middle;
            else
                high = middle;
        }
        return low;
    }
};

inline Pairs pairs_of(const LocalActivation& call, const Workspace& work) {
    return {slots_of(call, work, {0, call.queries}),
            Global<const int64_t>(call.begin, call.users),
            Global<const int64_t>(call.length, call.users),
            Global<const int64_t>(call.row_index, call.capacity),
            Global<const bool>(call.row_mask, call.history_rows),
            Global<const int64_t>(call.query_to_user, call.queries)};
}

// A block's range of the slots.
struct Range {
    int64_t begin, end;
    int64_t per_block;  // slots of every block but the last

    __device__ Range(int64_t slots, int rows, int64_t block, int64_t blocks) {
        const int64_t tiles = (slots + rows - 1) / rows;
        per_block = (tiles + blocks - 1) / blocks * rows;
        begin = block * per_block < slots ? block * per_block : slots;
        end = begin + per_block < slots ? begin + per_block : slots;
    }
    // A candidate begins in the range if its first slot lies there, and ends in it if its last one does.
    __device__ bool begins(const Slots& slots, int64_t candidate) const { return slots.before(candidate) >= begin; }
    __device__ bool ends(const Slots& slots, int64_t candidate) const { return slots.before(candidate + 1) <= end; }
};

// The blocks from .. to hold slots of a candidate, none where to < from.
struct BlocksOf {
    int64_t from = 0, to = -1;

    __device__ BlocksOf(const Slots& slots, int64_t candidate, int rows, int64_t blocks) {
        const int64_t begin = slots.before(candidate), end = slots.before(candidate + 1);
        if (begin == end) return;
        const Range range(slots.total(), rows, 0, blocks);
        from = begin / range.per_block, to = (end - 1) / range.per_block;
    }
    __device__ bool none() const { return to < from; }
    __device__ bool one() const { return to == from; }
    // The candidate's partial among the two of each block.
    __device__ int64_t partial(int64_t block) const { return 2 * block + (block == from ? 1 : 0); }
};

}  // namespace din_kernels::cuda
