// Which pairs a tile holds, and how their rows come into shared memory.
#pragma once

#include "common/accessors.cuh"
#include "common/table_rows.cuh"
#include "local_activation/plan.h"

namespace din_kernels::cuda {

// Threads, a power of two of them, over rows of pieces without a division by the number of pieces: the next power of
// two of them stands side by side in a row, if there are so many. A thread takes kBatch of its rows at once: all their
// loads come before the first store, which they could not pass, since shared arrays may overlap for all that a compiler
// knows.
struct RowThreads {
    static constexpr int kBatch = 4;
    int threads, log_pieces;

    __device__ RowThreads(int pieces, int threads) : threads(threads) {
        log_pieces = 32 - __clz((pieces < threads ? pieces : threads) - 1);
    }
    // Rows, and pieces of a row, that the threads take at once.
    __device__ int rows() const { return threads >> log_pieces; }
    __device__ int pieces() const { return 1 << log_pieces; }
    // A thread's first row and piece, and how many of all `rows` are its own.
    __device__ int row(int thread) const { return thread >> log_pieces; }
    __device__ int piece(int thread) const { return thread & (pieces() - 1); }
    __device__ int count(int thread, int rows) const {
        return (rows - row(thread) + this->rows() - 1) >> (31 - __clz(this->rows()));
    }
};

// Rows of one or several tables, read by element.
template <typename S>
struct TableRows {
    RowTables tables;
    int64_t entries;  // of the ids
    bool vector;      // all rows can be copied 16 bytes at a time

    __device__ int64_t row_of(int table, int64_t at) const {
        return tables.ids[table].data ? IdArray{tables.ids[table], entries}[at] : at;
    }
    __device__ Global<const S> table(int k) const {
        return Global<const S>(static_cast<const S*>(tables.data[k]), tables.rows[k] * tables.width[k]);
    }
};

// The slots of a launch, one candidate's behind the other's. A candidate has one per pair or, folded, whole tiles.
struct Slots {
    int64_t begin, end;           // candidates of the launch
    Global<const int64_t> first;  // [Q + 1]: slots before each candidate

    __device__ int64_t before(int64_t candidate) const { return first[candidate] - first[begin]; }
    __device__ int64_t total() const { return before(end); }
    // Where a candidate's rows begin and end in a tile of `valid` rows from `slot` on.
    __device__ int first_row(int64_t candidate, int64_t slot) const {
        const int64_t first = before(candidate) - slot;
        return first > 0 ? int(first) : 0;
    }
    __device__ int last_row(int64_t candidate, int64_t slot, int valid) const {
        const int64_t last = before(candidate + 1) - slot;
        return last < valid ? int(last) : valid;
    }
};

inline Slots slots_of(const LocalActivation& call, const UnitWorkspace& work, Chunk chunk) {
    return {chunk.begin, chunk.end,
            Global<const int64_t>(carved<int64_t>(call.workspace, work.slot_first), call.queries + 1)};
}

// Candidates, histories and pairs of a call.
struct Pairs {
    Slots slots;
    Global<const int64_t> begin;          // [U]
    Global<const int64_t> length;         // [U]
    Global<const int64_t> row_index;      // [capacity] or null
    Global<const bool> row_mask;          // [M] or null; false: counts in Dice's statistics and nowhere else
    Global<const int64_t> query_to_user;  // [Q] or null

    __device__ int64_t user(int64_t candidate) const { return query_to_user ? query_to_user[candidate] : candidate; }
    // Row of the pair at `position` of the candidate's history.
    __device__ int64_t row(int64_t position, int64_t candidate) const {
        const int64_t at = begin[user(candidate)] + position;
        return row_index ? row_index[at] : at;
    }
    // Whether a row has a weight.
    __device__ bool counts(int64_t row) const { return !row_mask || row_mask[row]; }
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

// A block's share of the slots: whole tiles, in order, so that a candidate lies in consecutive blocks.
struct Range {
    int64_t begin, end;
    int64_t per_block;  // slots of a block but the last

    __device__ Range(int64_t slots, int rows, int64_t block, int64_t blocks) {
        const int64_t tiles = (slots + rows - 1) / rows;
        per_block = (tiles + blocks - 1) / blocks * rows;
        begin = block * per_block < slots ? block * per_block : slots;
        end = begin + per_block < slots ? begin + per_block : slots;
    }
    // Whether a candidate's first slot lies in the block, and whether its last one does.
    __device__ bool begins(const Slots& slots, int64_t candidate) const { return slots.before(candidate) >= begin; }
    __device__ bool ends(const Slots& slots, int64_t candidate) const { return slots.before(candidate + 1) <= end; }
};

// The blocks that hold slots of a candidate: from .. to, none where to < from.
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
    // Of the two partials of a block, that of a candidate which began before it, or of one that goes on behind it.
    __device__ int64_t partial(int64_t block) const { return 2 * block + (block == from ? 1 : 0); }
};

// The tiles of a block in shared memory. Every thread of the block calls every function.
template <typename S, bool kFolded>
struct TileLoader {
    Pairs pairs;
    TableRows<S> source;
    int dim, stride, rows, threads;
    uint32_t keys, key_bytes, candidate, row, window;

    __device__ Shared<S> keys_of(int stage) const { return Shared<S>(keys + stage * key_bytes, rows * stride); }
    __device__ Shared<int> candidates_of(int stage) const {
        return Shared<int>(candidate + stage * uint32_t(rows) * 4, rows);
    }
    __device__ Shared<int64_t> rows_of(int stage) const {
        return Shared<int64_t>(row + stage * uint32_t(rows) * 8, rows);
    }

    // Starts to bring slots slot .. end, at most `rows`; rows without a pair become zeros of candidate -1. `cursor` is
    // the candidate of the last pair fetched, or of `slot` at first.
    __device__ void fetch(int64_t slot, int64_t end, int stage, int64_t& cursor) const {
        const Shared<int> firsts(window, rows + 1);
        const Shared<int> candidates = candidates_of(stage);
        const Shared<int64_t> source_rows = rows_of(stage);
        const Slots& slots = pairs.slots;
        for (int at = int(threadIdx.x); at <= rows; at += threads) {
            const int64_t i = cursor + at, first = slots.before(i < slots.end ? i : slots.end) - slot;
            firsts.store(at, first < 0 ? 0 : first < rows ? int(first) : rows);
        }
        __syncthreads();
        for (int at = int(threadIdx.x); at < rows; at += threads) {
            const int64_t mine = slot + at;
            int64_t i = -1, row = -1;
            if (mine < end) {
                i = candidate_at(slot, at, firsts, cursor);
                const int64_t position = mine - slots.before(i);
                if (kFolded && position >= pairs.length[pairs.user(i)])
                    i = -1;
                else
                    row = pairs.row(position, i);
            }
            candidates.store(at, int(i));
            source_rows.store(at, row);
        }
        __syncthreads();
        cursor = candidates[valid(slot, end, candidates) - 1];
        copy_rows(source_rows, keys_of(stage));
        ptx::commit_copies();
    }

    // Pairs in the tile's first rows; behind them are none.
    __device__ int valid(int64_t slot, int64_t end, const Shared<int>& candidates) const {
        int64_t left = end - slot;
        if (kFolded) {
            const int64_t i = candidates[0];
            left = pairs.length[pairs.user(i)] - (slot - pairs.slots.before(i));
        }
        return left < rows ? int(left) : rows;
    }

 private:
    // The candidate of slot + at. Most of a tile lie in the window from `cursor` on, whose first slots, counted from
    // the tile's, are `firsts`; many empty histories can push them out.
    __device__ int64_t candidate_at(int64_t slot, int at, const Shared<int>& firsts, int64_t cursor) const {
        if (firsts[rows] <= at) return pairs.find(slot + at, cursor + rows);
        int low = 0, high = rows;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            if (firsts[middle] <= at)
                low = middle;
            else
                high = middle;
        }
        return cursor + low;
    }

    __device__ void copy_rows(const Shared<int64_t>& source_rows, const Shared<S>& to) const {
        constexpr int kPiece = int(16 / sizeof(S));
        int column = 0;
        for (int k = 0; k < source.tables.tables; ++k) {
            const int width = int(source.tables.width[k]);
            const Global<const S> table = source.table(k);
            const int pieces = source.vector ? width / kPiece : width, mine = int(threadIdx.x);
            const RowThreads split(pieces, threads);
            const int count = split.count(mine, rows);
            for (int piece = split.piece(mine); piece < pieces; piece += split.pieces())
                for (int n = 0; n < count; n += RowThreads::kBatch) {
                    const int first = split.row(mine) + n * split.rows();
                    const int at = first * stride + column + piece * (source.vector ? kPiece : 1);
                    int64_t entry[RowThreads::kBatch], from[RowThreads::kBatch];
#pragma unroll
                    for (int b = 0; b < RowThreads::kBatch; ++b)
                        entry[b] = n + b < count ? source_rows[first + b * split.rows()] : -1;
#pragma unroll
                    for (int b = 0; b < RowThreads::kBatch; ++b)
                        from[b] = entry[b] < 0 ? 0 : source.row_of(k, entry[b]) * width;
                    if (source.vector) {
#pragma unroll
                        for (int b = 0; b < RowThreads::kBatch; ++b)
                            if (n + b < count)
                                copy_async_16(to, at + b * split.rows() * stride, table, from[b] + piece * kPiece,
                                              entry[b] < 0 ? 0 : kPiece);
                    } else {
                        S value[RowThreads::kBatch];
#pragma unroll
                        for (int b = 0; b < RowThreads::kBatch; ++b)
                            value[b] = entry[b] < 0 ? S{} : table[from[b] + piece];
#pragma unroll
                        for (int b = 0; b < RowThreads::kBatch; ++b)
                            if (n + b < count) to.store(at + b * split.rows() * stride, value[b]);
                    }
                }
            column += width;
        }
    }
};

// body(stage, slot) for every tile of the block's range, while the next one is on its way. Inlined, as the body should
// be: a function that gets a kernel's parameters by reference gets a copy of them in local memory.
template <typename S, bool kFolded, typename Body>
__device__ __forceinline__ void for_tiles(const TileLoader<S, kFolded>& loader, const Range& range, int stages,
                                          const Body& body) {
    int stage = 0;
    int64_t cursor = 0;
    if (range.begin < range.end) {
        cursor = loader.pairs.find(range.begin, loader.pairs.slots.begin);
        loader.fetch(range.begin, range.end, 0, cursor);
    }
    for (int64_t slot = range.begin; slot < range.end; slot += loader.rows) {
        const bool more = slot + loader.rows < range.end, ahead = more && stages > 1;
        if (ahead) {
            loader.fetch(slot + loader.rows, range.end, stage ^ 1, cursor);
            ptx::wait_for_copies<1>();
        } else {
            ptx::wait_for_copies<0>();
        }
        __syncthreads();
        body(stage, slot);
        __syncthreads();
        if (more && !ahead) loader.fetch(slot + loader.rows, range.end, 0, cursor);
        if (ahead) stage ^= 1;
    }
}

template <typename S, bool kFolded>
TileLoader<S, kFolded> tile_loader(const LocalActivation& call, const UnitSizes& sizes, const TileShared& tile,
                                   const UnitWorkspace& work) {
    bool vector = true;
    for (int k = 0; k < call.rows.tables; ++k)
        vector &= call.rows.width[k] * sizeof(S) % 16 == 0 && reinterpret_cast<uintptr_t>(call.rows.data[k]) % 16 == 0;
    const Pairs pairs{
        slots_of(call, work, {0, call.queries}),
        Global<const int64_t>(call.begin, call.users),
        Global<const int64_t>(call.length, call.users),
        Global<const int64_t>(call.row_index, call.capacity),
        Global<const bool>(call.row_mask, call.rows_count),
        Global<const int64_t>(call.query_to_user, call.queries),
    };
    return {pairs,
            {call.rows, call.rows_count, vector},
            sizes.dim,
            sizes.stride[0],
            tile.rows,
            32 * tile.warps,
            uint32_t(tile.keys),
            uint32_t(tile.key_bytes),
            uint32_t(tile.candidate),
            uint32_t(tile.row),
            uint32_t(tile.window)};
}

}  // namespace din_kernels::cuda
