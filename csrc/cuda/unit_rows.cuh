// Which pairs a tile holds, and how their rows come into shared memory.
#pragma once

#include "accessors.cuh"
#include "table_rows.cuh"
#include "unit_plan.h"

namespace din_kernels::cuda {

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

// Candidates, histories and pairs of a call.
struct Pairs {
    int64_t queries;
    Global<const uint32_t> first;         // [Q + 1]: pairs before each candidate
    Global<const int64_t> begin;          // [U]
    Global<const int64_t> row_index;      // [capacity] or null
    Global<const int64_t> query_to_user;  // [Q] or null

    // Row of pair `pair`, which belongs to `candidate`.
    __device__ int64_t row(int64_t pair, int64_t candidate) const {
        const int64_t user = query_to_user ? query_to_user[candidate] : candidate;
        const int64_t at = begin[user] + (pair - first[candidate]);
        return row_index ? row_index[at] : at;
    }
    // The candidate among from .. queries that `pair` belongs to.
    __device__ int64_t find(int64_t pair, int64_t from) const {
        int64_t low = from, high = queries;  // first[low] <= pair < first[high]
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            if (int64_t(first[middle]) <= pair)
                low = middle;
            else
                high = middle;
        }
        return low;
    }
};

// A block's share of the pairs: whole tiles, in order, so that a candidate lies in consecutive blocks.
struct Range {
    int64_t begin, end;
    int64_t per_block;  // pairs of a block but the last

    // In 32 bits: pairs are below 2^32, and a division of 64 bits is a call.
    __device__ Range(uint32_t pairs, int rows, unsigned block, unsigned blocks) {
        const uint32_t tiles = pairs / unsigned(rows) + (pairs % unsigned(rows) != 0);
        const uint32_t tiles_per_block = tiles / blocks + (tiles % blocks != 0);
        per_block = int64_t(tiles_per_block) * rows;
        begin = block * per_block < pairs ? block * per_block : pairs;
        end = begin + per_block < pairs ? begin + per_block : pairs;
    }
};

// The tiles of a block in shared memory. Every thread of the block calls every function.
template <typename S>
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

    // Starts to bring pairs pair .. end, at most `rows`; rows behind them become zeros of candidate -1. `cursor` is the
    // candidate of the last pair fetched, or of `pair` at first.
    __device__ void fetch(int64_t pair, int64_t end, int stage, int64_t& cursor) const {
        const Shared<uint32_t> firsts(window, rows + 1);
        const Shared<int> candidates = candidates_of(stage);
        const Shared<int64_t> source_rows = rows_of(stage);
        for (int at = int(threadIdx.x); at <= rows; at += threads) {
            const int64_t i = cursor + at;
            firsts.store(at, pairs.first[i < pairs.queries ? i : pairs.queries]);
        }
        __syncthreads();
        for (int at = int(threadIdx.x); at < rows; at += threads) {
            const int64_t mine = pair + at;
            int64_t i = -1;
            if (mine < end) {
                // Most candidates of a tile lie in the window; many empty histories can push them out of it.
                if (int64_t(firsts[rows]) <= mine) {
                    i = pairs.find(mine, cursor + rows);
                } else {
                    int low = 0, high = rows;
                    while (high - low > 1) {
                        const int middle = (low + high) / 2;
                        if (int64_t(firsts[middle]) <= mine)
                            low = middle;
                        else
                            high = middle;
                    }
                    i = cursor + low;
                }
            }
            candidates.store(at, int(i));
            source_rows.store(at, i < 0 ? -1 : pairs.row(mine, i));
        }
        __syncthreads();
        const int64_t left = end - pair;
        const int valid = left < rows ? int(left) : rows;
        cursor = candidates[valid - 1];
        copy_rows(source_rows, keys_of(stage));
        ptx::commit_copies();
    }

 private:
    __device__ void copy_rows(const Shared<int64_t>& source_rows, const Shared<S>& to) const {
        constexpr int kPiece = int(16 / sizeof(S));
        int column = 0;
        for (int k = 0; k < source.tables.tables; ++k) {
            const int width = int(source.tables.width[k]);
            const Global<const S> table = source.table(k);
            const int pieces = source.vector ? width / kPiece : width;
            for (int at = int(threadIdx.x); at < rows * pieces; at += threads) {
                const int tile_row = at / pieces, piece = at % pieces;
                const int64_t entry = source_rows[tile_row];
                if (source.vector) {
                    const int64_t from = entry < 0 ? 0 : source.row_of(k, entry) * width + piece * kPiece;
                    copy_async_16(to, tile_row * stride + column + piece * kPiece, table, from, entry < 0 ? 0 : kPiece);
                } else {
                    const S value = entry < 0 ? S{} : table[source.row_of(k, entry) * width + piece];
                    to.store(tile_row * stride + column + piece, value);
                }
            }
            column += width;
        }
    }
};

template <typename S>
TileLoader<S> tile_loader(const LocalActivation& call, const UnitSizes& sizes, const TileShared& tile,
                          const UnitWorkspace& work) {
    bool vector = true;
    for (int k = 0; k < call.rows.tables; ++k)
        vector &= call.rows.width[k] * sizeof(S) % 16 == 0 && reinterpret_cast<uintptr_t>(call.rows.data[k]) % 16 == 0;
    const Pairs pairs{
        call.queries,
        Global<const uint32_t>(carved<uint32_t>(call.workspace, work.pair_first), call.queries + 1),
        Global<const int64_t>(call.begin, call.users),
        Global<const int64_t>(call.row_index, call.capacity),
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
