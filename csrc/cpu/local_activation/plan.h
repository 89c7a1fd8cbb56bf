// How the pairs of a call are cut into blocks: by behaviours, not by users, and never by the number of threads.
//
//     pairs of      | user 0 | user 1 |        user 2, whose 3 candidates have 4000 behaviours      |
//     entries       | c0     | c1     | c2 c3 c4 over run 0 | c2 c3 c4 over run 1 | c2 c3 c4 ...     |
//     blocks        |      block 0              |          block 1            | ...
//
// An entry is a candidate over a run of its history; most histories are one run. A history that is worth more than a
// block is cut into runs, its candidates into chunks, and a chunk lies in one block. What a candidate has in several
// runs goes to partial sums, slot by slot, and the gradient of rows that several chunks share to partial rows; both are
// added up afterwards, in the order of the plan.
#pragma once

#include <cstdint>
#include <vector>

#include "din_kernels/local_activation.h"

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
Plan make_plan(const LocalActivation& call, int64_t max_blocks, bool backward);

}  // namespace din_kernels::cpu
