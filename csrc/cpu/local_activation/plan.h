// How the pairs of a call are cut into blocks: by behaviours, not by users, and never by the number of threads.
#pragma once

#include <cstdint>
#include <vector>

namespace din_kernels::cpu {

// One candidate over a run of its user's behaviours.
struct Entry {
    int64_t query;
    int64_t position;                    // of the run's first behaviour, counted as begin[u] counts
    int64_t rows;                        // behaviours in the run
    int64_t pair;                        // where this run's weights go, -1: not returned
    int64_t history_pair, history_rows;  // the candidate's whole history in pair weights
    int64_t partial;                     // slot for partial sums of the candidate, -1: the run is the whole history
    int64_t grad_row;  // first row in the partial history gradients, -1: written straight to the gradient
    bool first, last;  // of the entries in a row that add to the same history gradients
};

// Candidate `query` is the sum of `count` partial slots from `first`.
struct Merge {
    int64_t query, first, count, pair, position, rows;
};

// History positions position .. position + rows are the sum of `count` stretches of partial rows from `first`.
struct RowMerge {
    int64_t position, rows, first, count;
};

struct Plan {
    std::vector<Entry> entries;
    std::vector<int64_t> blocks;  // entries blocks[b] .. blocks[b + 1]
    std::vector<int64_t> empty;   // candidates with no behaviours
    std::vector<Merge> merges;
    std::vector<RowMerge> row_merges;
    int64_t partials = 0, partial_rows = 0;
    int64_t shared_rows = 0;  // of the longest run that several entries in a row add gradients to
    int64_t pairs = 0;
    int64_t touched_rows = 0;  // history positions that some candidate attends to
};

// Each block keeps weight gradients of its own, so their number is limited.
Plan make_plan(int64_t queries, int64_t users, const int64_t* begin, const int64_t* length,
               const int64_t* query_to_user, const int64_t* pair_begin, int64_t max_blocks, bool backward);

}  // namespace din_kernels::cpu
