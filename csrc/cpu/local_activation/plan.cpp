#include "local_activation/plan.h"

#include <algorithm>
#include <numeric>

namespace din_kernels::cpu {
namespace {

constexpr int64_t kMinPairs = 512;  // a smaller block would not pay for its gradients
// Runs of a history that many candidates share, when it must be cut: the partial history gradients stay below
// max_blocks * kSharedRun rows.
constexpr int64_t kSharedRun = 256;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Plan make_plan(int64_t queries, int64_t users, const int64_t* begin, const int64_t* length,
               const int64_t* query_to_user, const int64_t* pair_begin, int64_t max_blocks, bool backward) {
    Plan plan;
    // Candidates in the order of their users, stable.
    std::vector<int64_t> order(queries), first(users + 1, 0);
    if (query_to_user || queries == 0) {  // no query_to_user is an empty array too, whose address may be null
        for (int64_t i = 0; i < queries; ++i) ++first[query_to_user[i] + 1];
        std::partial_sum(first.begin(), first.end(), first.begin());
        std::vector<int64_t> next(first.begin(), first.end() - 1);
        for (int64_t i = 0; i < queries; ++i) order[next[query_to_user[i]]++] = i;
    } else {
        std::iota(order.begin(), order.end(), 0);
        std::iota(first.begin(), first.end(), 0);
    }
    for (int64_t u = 0; u < users; ++u) plan.pairs += length[u] * (first[u + 1] - first[u]);
    const int64_t target = std::max(kMinPairs, divide_up(plan.pairs, max_blocks));

    plan.blocks.push_back(0);
    plan.entries.reserve(queries);
    int64_t work = 0;
    const auto close_group = [&](int64_t pairs_of_group) {
        work += pairs_of_group;
        if (work >= target) {
            plan.blocks.push_back(int64_t(plan.entries.size()));
            work = 0;
        }
    };
    for (int64_t u = 0; u < users; ++u) {
        const int64_t candidates = first[u + 1] - first[u], rows = length[u];
        if (candidates == 0) continue;
        if (rows == 0) {
            plan.empty.insert(plan.empty.end(), order.begin() + first[u], order.begin() + first[u + 1]);
            continue;
        }
        plan.touched_rows += rows;
        int64_t runs = 1, chunks = 1;
        if (rows * candidates > target) {
            // Every run of a candidate takes a partial sum. Forward cuts a history only for want of candidates.
            runs = backward && candidates > 1 ? divide_up(rows, kSharedRun)
                                              : std::min(divide_up(rows, target), divide_up(max_blocks, candidates));
            chunks = divide_up(candidates, std::max<int64_t>(1, target / divide_up(rows, runs)));
        }
        const int64_t first_partial = plan.partials;
        if (runs > 1) plan.partials += runs * candidates;
        for (int64_t r = 0; r < runs; ++r) {
            const int64_t run_begin = rows * r / runs, run_rows = rows * (r + 1) / runs - run_begin;
            if (chunks > 1) plan.row_merges.push_back({begin[u] + run_begin, run_rows, plan.partial_rows, chunks});
            for (int64_t c = 0; c < chunks; ++c) {
                const int64_t from = candidates * c / chunks, to = candidates * (c + 1) / chunks;
                for (int64_t i = from; i < to; ++i) {
                    const int64_t query = order[first[u] + i];
                    const int64_t pair = pair_begin ? pair_begin[query] : -1;
                    plan.entries.push_back({query, begin[u] + run_begin, run_rows, pair < 0 ? -1 : pair + run_begin,
                                            pair, rows, runs > 1 ? first_partial + i * runs + r : -1,
                                            chunks > 1 ? plan.partial_rows : -1, i == from, i + 1 == to});
                }
                if (to - from > 1) plan.shared_rows = std::max(plan.shared_rows, run_rows);
                if (chunks > 1) plan.partial_rows += run_rows;
                close_group((to - from) * run_rows);
            }
        }
        if (runs > 1)
            for (int64_t i = 0; i < candidates; ++i) {
                const int64_t query = order[first[u] + i];
                plan.merges.push_back(
                    {query, first_partial + i * runs, runs, pair_begin ? pair_begin[query] : -1, begin[u], rows});
            }
    }
    if (plan.blocks.back() != int64_t(plan.entries.size())) plan.blocks.push_back(int64_t(plan.entries.size()));
    return plan;
}

}  // namespace din_kernels::cpu
