#include "local_activation/plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace din_kernels::cpu {
namespace {

constexpr int64_t kMinPairs = 512;  // a smaller block would not pay for its gradients
// Rows of a run where many candidates share a history that must be cut: the partial history gradients stay below
// max_blocks * kSharedRun rows.
constexpr int64_t kSharedRun = 256;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The candidates by user, in their own order.
struct Candidates {
    std::vector<int64_t> order, first;  // [Q], [U + 1]: user u has order[first[u]] .. order[first[u + 1] - 1]

    explicit Candidates(const LocalActivation& call) : order(call.queries), first(call.users + 1, 0) {
        const int64_t* const user = call.query_to_user;
        if (!user && call.queries > 0) {  // an empty array, too, may have a null address
            std::iota(order.begin(), order.end(), 0);
            std::iota(first.begin(), first.end(), 0);
            return;
        }
        for (int64_t i = 0; i < call.queries; ++i) ++first[user[i] + 1];
        std::partial_sum(first.begin(), first.end(), first.begin());
        std::vector<int64_t> next(first.begin(), first.end() - 1);
        for (int64_t i = 0; i < call.queries; ++i) order[next[user[i]]++] = i;
    }
    int64_t of(int64_t user) const { return first[user + 1] - first[user]; }
};

class Planner {
 public:
    Planner(const LocalActivation& call, int64_t max_blocks, bool backward)
        : call_(call), candidates_(call), max_blocks_(max_blocks), backward_(backward) {
        for (int64_t u = 0; u < call.users; ++u) plan_.pairs += call.length[u] * candidates_.of(u);
        target_ = std::max(kMinPairs, divide_up(plan_.pairs, max_blocks));
    }

    Plan make() {
        plan_.blocks.push_back(0);
        plan_.entries.reserve(call_.queries);
        for (int64_t u = 0; u < call_.users; ++u)
            if (candidates_.of(u) > 0) add_user(u);
        if (plan_.blocks.back() != entries()) plan_.blocks.push_back(entries());
        return std::move(plan_);
    }

 private:
    // How the pairs of one user are cut: its history into runs, its candidates into chunks.
    struct Cut {
        int64_t runs = 1, chunks = 1;
        int64_t first_partial = 0;
    };

    int64_t entries() const { return int64_t(plan_.entries.size()); }

    Cut cut(int64_t rows, int64_t candidates) const {
        Cut found;
        if (rows * candidates <= target_) return found;
        // Every run of a candidate takes a partial sum. Forward cuts a history only for want of candidates.
        found.runs = backward_ && candidates > 1
                         ? divide_up(rows, kSharedRun)
                         : std::min(divide_up(rows, target_), divide_up(max_blocks_, candidates));
        found.chunks = divide_up(candidates, std::max<int64_t>(1, target_ / divide_up(rows, found.runs)));
        return found;
    }

    void add_user(int64_t u) {
        const int64_t candidates = candidates_.of(u), rows = call_.length[u], begin = call_.begin[u];
        if (rows == 0) {
            const auto first = candidates_.order.begin() + candidates_.first[u];
            plan_.empty.insert(plan_.empty.end(), first, first + candidates);
            return;
        }
        plan_.touched_rows += rows;
        Cut how = cut(rows, candidates);
        how.first_partial = plan_.partials;
        if (how.runs > 1) plan_.partials += how.runs * candidates;
        for (int64_t r = 0; r < how.runs; ++r) {
            const int64_t from = rows * r / how.runs, run_rows = rows * (r + 1) / how.runs - from;
            if (how.chunks > 1) plan_.row_merges.push_back({begin + from, run_rows, plan_.partial_rows, how.chunks});
            for (int64_t c = 0; c < how.chunks; ++c) add_chunk(u, how, r, c);
        }
        if (how.runs == 1) return;
        for (int64_t i = 0; i < candidates; ++i) {
            const int64_t query = candidates_.order[candidates_.first[u] + i];
            plan_.merges.push_back({query, how.first_partial + i * how.runs, how.runs, pair_of(query), begin, rows});
        }
    }

    // The entries of one chunk of a user's candidates over one run of its history.
    void add_chunk(int64_t u, const Cut& how, int64_t run, int64_t chunk) {
        const int64_t candidates = candidates_.of(u), rows = call_.length[u];
        const int64_t begin = rows * run / how.runs, run_rows = rows * (run + 1) / how.runs - begin;
        const int64_t from = candidates * chunk / how.chunks, to = candidates * (chunk + 1) / how.chunks;
        for (int64_t i = from; i < to; ++i) {
            Entry entry;
            entry.query = candidates_.order[candidates_.first[u] + i];
            entry.position = call_.begin[u] + begin, entry.rows = run_rows;
            entry.history_pair = pair_of(entry.query), entry.history_rows = rows;
            entry.pair = entry.history_pair < 0 ? -1 : entry.history_pair + begin;
            entry.partial = how.runs > 1 ? how.first_partial + i * how.runs + run : -1;
            entry.grad_row = how.chunks > 1 ? plan_.partial_rows : -1;
            entry.first = i == from, entry.last = i + 1 == to;
            plan_.entries.push_back(entry);
        }
        if (to - from > 1) plan_.shared_rows = std::max(plan_.shared_rows, run_rows);
        if (how.chunks > 1) plan_.partial_rows += run_rows;
        close_block((to - from) * run_rows);
    }

    // Ends the block where it has its share of pairs. A chunk lies in one block.
    void close_block(int64_t pairs_of_chunk) {
        work_ += pairs_of_chunk;
        if (work_ < target_) return;
        plan_.blocks.push_back(entries());
        work_ = 0;
    }

    int64_t pair_of(int64_t query) const { return call_.pair_begin ? call_.pair_begin[query] : -1; }

    const LocalActivation& call_;
    const Candidates candidates_;
    const int64_t max_blocks_;
    const bool backward_;
    int64_t target_, work_ = 0;  // pairs of a block, and of the block so far
    Plan plan_;
};

}  // namespace

Plan make_plan(const LocalActivation& call, int64_t max_blocks, bool backward) {
    return Planner(call, max_blocks, backward).make();
}

}  // namespace din_kernels::cpu
