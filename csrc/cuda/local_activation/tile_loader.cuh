// The loader brings the pairs of a tile and the rows of their behaviours into shared memory.
//
// With two stages the next tile is on its way while the present one is computed:
//
//   stage 0   | fetch tile 0 | wait | compute tile 0     |      | fetch tile 2 ...
//   stage 1   |              | fetch tile 1 . . . . . .  | wait | compute tile 1 ...
//
// fetch finds the candidate of every row of the tile in a window of candidates. The window begins at the cursor, the
// candidate of the last pair fetched, and has an entry per row and one more:
//
//   window[at] = first slot of candidate cursor + at, counted from the tile's first slot and clamped to 0 .. rows
//
//   candidate   cursor   +1       +2  +3 (empty)   +4
//   window      0        3        5   9            9
//   rows        0  1  2  3  4     5 6 7 8          9 10 ...
//
// Row 6 belongs to the last candidate whose entry is at most 6, here cursor + 2.
#pragma once

#include "common/accessors.cuh"
#include "common/table_rows.cuh"
#include "local_activation/schedule.cuh"

namespace din_kernels::cuda {

// Deals rows of `pieces` pieces to a power of two of threads without a division by the number of pieces: the next power
// of two of threads stands side by side in a row, if there are so many. With 3 pieces and 16 threads, 4 threads share a
// row and the last of them has nothing to do:
//
//             pieces 0 1 2 -
//   row 0  threads   0 1 2 3
//   row 1            4 5 6 7
//   row 2            8 9 . .
//
// A thread takes kBatch of its rows at once, all loads before the first store: a load cannot pass a store, since shared
// arrays may overlap for all that a compiler knows.
struct RowThreads {
    static constexpr int kBatch = 4;
    int threads, log_pieces;

    __device__ RowThreads(int pieces, int threads) : threads(threads) {
        log_pieces = 32 - __clz((pieces < threads ? pieces : threads) - 1);
    }
    // All threads together take this many rows, and this many pieces of a row, at once.
    __device__ int rows() const { return threads >> log_pieces; }
    __device__ int pieces() const { return 1 << log_pieces; }
    // A thread's first row and piece, and its number of the `rows`.
    __device__ int row(int thread) const { return thread >> log_pieces; }
    __device__ int piece(int thread) const { return thread & (pieces() - 1); }
    __device__ int count(int thread, int rows) const {
        return (rows - row(thread) + this->rows() - 1) >> (31 - __clz(this->rows()));
    }
};

// Rows of one or several tables, read by element.
template <typename S>
struct TableRows {
    Source source;
    int64_t entries;   // of the ids
    bool by_16_bytes;  // all rows can be copied 16 bytes at a time

    __device__ int64_t row_of(int table, int64_t at) const {
        const Ids& ids = source.tables[table].ids;
        return ids.data ? IdArray{ids, entries}[at] : at;
    }
    __device__ int count() const { return source.count; }
    __device__ int64_t width(int k) const { return source.tables[k].width; }
    __device__ Global<const S> table(int k) const {
        const Table& table = source.tables[k];
        return Global<const S>(static_cast<const S*>(table.values), table.rows * table.width);
    }
};

// The tiles of a block in shared memory. Every thread of the block calls every function.
template <typename S, bool kFolded>
struct TileLoader {
    Pairs pairs;
    TableRows<S> source;
    int dim, stride, rows, threads;
    uint32_t history, history_bytes, candidate, row, window;

    __device__ Shared<S> history_of(int stage) const {
        return Shared<S>(history + stage * history_bytes, rows * stride);
    }
    __device__ Shared<int> candidates_of(int stage) const {
        return Shared<int>(candidate + stage * uint32_t(rows) * 4, rows);
    }
    __device__ Shared<int64_t> rows_of(int stage) const {
        return Shared<int64_t>(row + stage * uint32_t(rows) * 8, rows);
    }

    // Starts to bring the slots slot .. end, at most `rows` of them; rows without a pair become zeros of candidate -1.
    // `cursor` is the candidate of the last pair fetched, and at first that of `slot`.
    __device__ void fetch(int64_t slot, int64_t end, int stage, int64_t& cursor) const {
        const Shared<int> firsts(window, rows + 1);
        const Shared<int> candidates = candidates_of(stage);
        const Shared<int64_t> source_rows = rows_of(stage);
        const Slots& slots = pairs.slots;
        // The window.
        for (int at = int(threadIdx.x); at <= rows; at += threads) {
            const int64_t i = cursor + at, first = slots.before(i < slots.end ? i : slots.end) - slot;
            firsts.store(at, first < 0 ? 0 : first < rows ? int(first) : rows);
        }
        __syncthreads();
        // Candidate and source row of every row of the tile.
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
        copy_rows(source_rows, history_of(stage));
        ptx::commit_copies();
    }

    // The tile's first `valid` rows have pairs, the others none.
    __device__ int valid(int64_t slot, int64_t end, const Shared<int>& candidates) const {
        int64_t left = end - slot;
        if (kFolded) {
            const int64_t i = candidates[0];
            left = pairs.length[pairs.user(i)] - (slot - pairs.slots.before(i));
        }
        return left < rows ? int(left) : rows;
    }

 private:
    // The candidate of slot + at. It lies in the window `firsts`, unless many empty histories have pushed it out.
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

    // The tables' rows side by side, each thread some pieces of some rows.
    __device__ void copy_rows(const Shared<int64_t>& source_rows, const Shared<S>& to) const {
        constexpr int kPiece = int(16 / sizeof(S));
        int column = 0;
        for (int k = 0; k < source.count(); ++k) {
            const int width = int(source.width(k));
            if (source.by_16_bytes)
                copy_table<kPiece>(k, width, column, source_rows, to);
            else
                copy_table<1>(k, width, column, source_rows, to);
            column += width;
        }
    }

    // Columns of table k, `width` of them, to the tile's columns from `column` on, kPiece elements at a time.
    template <int kPiece>
    __device__ __forceinline__ void copy_table(int k, int width, int column, const Shared<int64_t>& source_rows,
                                               const Shared<S>& to) const {
        constexpr int kBatch = RowThreads::kBatch;
        const Global<const S> table = source.table(k);
        const int pieces = width / kPiece, mine = int(threadIdx.x);
        const RowThreads split(pieces, threads);
        const int count = split.count(mine, rows);
        for (int piece = split.piece(mine); piece < pieces; piece += split.pieces())
            for (int n = 0; n < count; n += kBatch) {
                const int first = split.row(mine) + n * split.rows();
                const int at = first * stride + column + piece * kPiece;
                int64_t entry[kBatch], from[kBatch];
#pragma unroll
                for (int b = 0; b < kBatch; ++b) entry[b] = n + b < count ? source_rows[first + b * split.rows()] : -1;
#pragma unroll
                for (int b = 0; b < kBatch; ++b) from[b] = entry[b] < 0 ? 0 : source.row_of(k, entry[b]) * width;
                if constexpr (kPiece > 1) {
#pragma unroll
                    for (int b = 0; b < kBatch; ++b)
                        if (n + b < count)
                            copy_async_16(to, at + b * split.rows() * stride, table, from[b] + piece * kPiece,
                                          entry[b] < 0 ? 0 : kPiece);
                } else {
                    S value[kBatch];
#pragma unroll
                    for (int b = 0; b < kBatch; ++b) value[b] = entry[b] < 0 ? S{} : table[from[b] + piece];
#pragma unroll
                    for (int b = 0; b < kBatch; ++b)
                        if (n + b < count) to.store(at + b * split.rows() * stride, value[b]);
                }
            }
    }
};

// Calls body(stage, slot) for every tile of the block's range, while the next one is on its way. The function is
// inlined, as the body should be: a function that gets a kernel's parameters by reference gets a copy of them in local
// memory.
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
TileLoader<S, kFolded> tile_loader(const LocalActivation& call, const Sizes& sizes, const TileShared& tile,
                                   const Workspace& work) {
    bool by_16_bytes = true;
    for (int k = 0; k < call.history.count; ++k) {
        const Table& table = call.history.tables[k];
        by_16_bytes &= table.width * sizeof(S) % 16 == 0 && reinterpret_cast<uintptr_t>(table.values) % 16 == 0;
    }
    return {pairs_of(call, work),
            {call.history, call.history_rows, by_16_bytes},
            sizes.dim,
            sizes.stride[0],
            tile.rows,
            32 * tile.warps,
            uint32_t(tile.history),
            uint32_t(tile.history_bytes),
            uint32_t(tile.candidate),
            uint32_t(tile.row),
            uint32_t(tile.window)};
}

}  // namespace din_kernels::cuda
