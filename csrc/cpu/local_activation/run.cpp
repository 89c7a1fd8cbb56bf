// The call around the kernels, compiled once: packs the MLP, runs the blocks of the plan on the threads, and adds up
// what blocks have in parts, always in the order of the plan.
#include "din_kernels/local_activation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/buffer.h"
#include "common/dispatch.h"
#include "common/parallel.h"
#include "local_activation/call.h"
#include "local_activation/pack.h"

namespace din_kernels::cpu {
namespace {

// Weight gradients of all blocks together; fewer than 8 blocks would leave threads idle.
constexpr int64_t kGradientBytes = 12 << 20, kMinBlocks = 8, kMaxBlocks = 64;
// Candidates whose matrices are made together with outer features: 2.6 MB at D = 128, H1 = 80.
constexpr int64_t kRound = 64, kOuterBlocks = 16;

template <typename T>
int64_t most_blocks(const LocalActivation& args) {
    if (args.features == Features::kOuter) return kOuterBlocks;
    return std::clamp(kGradientBytes / (gradient_size<T>(args) * int64_t(sizeof(T))), kMinBlocks, kMaxBlocks);
}

// A call: its plan, its packed weights and the buffers of its blocks.
template <typename T>
class Run {
 public:
    const LocalActivation& args;
    const Kernels<T>& kernels = local_activation_kernels_here().of<T>();
    const Plan plan;
    const int64_t blocks;
    const int threads;
    PackedWeights<T> weights;
    Call<T> call;

    Run(const LocalActivation& args, bool backward, int asked_threads)
        : args(args),
          plan(make_plan(args, most_blocks<T>(args), backward)),
          blocks(int64_t(plan.blocks.size()) - 1),
          threads(usable_threads(asked_threads, outer() ? std::max(blocks, args.dim) : blocks)),
          weights(args, kernels.lanes, backward, threads),
          call{args} {
        const PackedMlp<T>& m = weights.mlp;
        per_block_ = kernels.workspace(m, backward, plan.shared_rows);
        workspace_ = Buffer<T>(per_block_ * (outer() ? blocks : threads));
        partial_sums_ = Buffer<T>(plan.partials * (m.dim_p + 2));
        if (backward && args.grad_history.needed) partial_rows_ = Buffer<T>(plan.partial_rows * args.dim);
        call.mlp = m, call.plan = &plan;
        call.partial_sums = partial_sums_.data(), call.partial_rows = partial_rows_.data();
        if (!outer()) return;
        const int64_t matrix = args.dim * m.width_p[0];
        const int64_t sizes[] = {kRound * m.dim_p, kRound * matrix, backward ? kRound * m.dim_p : 0,
                                 backward ? args.dim * matrix : 0, backward ? matrix : 0};
        T** const pointers[] = {&call.outer.queries, &call.outer.folded_t, &call.outer.grad_queries,
                                &call.outer.grad_weight_outer, &call.outer.grad_weight_k};
        int64_t used = 0;
        for (const int64_t size : sizes) used += size;
        outer_ = Buffer<T>(used, true);
        used = 0;
        for (int i = 0; i < 5; ++i) *pointers[i] = outer_.data() + used, used += sizes[i];
    }

    bool outer() const { return args.features == Features::kOuter; }

    // body(block, index) for every block; with outer features in rounds, where body gets the block's entries of the
    // round, whose matrices are made before, and after(count) follows each round.
    template <typename Body, typename After>
    void for_blocks(const Body& body, const After& after) {
        if (outer()) return for_rounds(body, after);
        parallel_for(threads, blocks, [&](int64_t b, int thread) {
            body(Block<T>{plan.blocks[b], plan.blocks[b + 1], 0, workspace_.data() + thread * per_block_}, b);
        });
    }
    template <typename Body>
    void for_blocks(const Body& body) {
        for_blocks(body, [](const std::vector<int64_t>&) {});
    }

 private:
    int64_t per_block_;
    Buffer<T> workspace_, partial_sums_, partial_rows_, outer_;

    template <typename Body, typename After>
    void for_rounds(const Body& body, const After& after) {
        const int64_t share = kRound / std::max<int64_t>(blocks, 1), dim_p = weights.mlp.dim_p;
        std::vector<Block<T>> parts(blocks);
        std::vector<int64_t> entries;
        for (int64_t round = 0;; ++round) {
            entries.clear();
            for (int64_t b = 0; b < blocks; ++b) {
                const int64_t first = std::min(plan.blocks[b] + round * share, plan.blocks[b + 1]);
                const int64_t last = std::min(first + share, plan.blocks[b + 1]);
                parts[b] = {first, last, int64_t(entries.size()), workspace_.data() + b * per_block_};
                for (int64_t entry = first; entry < last; ++entry) entries.push_back(entry);
            }
            if (entries.empty()) return;
            call.outer.count = int64_t(entries.size());
            for (int64_t i = 0; i < call.outer.count; ++i)
                kernels.fetch_query(args, plan.entries[entries[i]].query, dim_p, call.outer.queries + i * dim_p);
            parallel_for(threads, args.dim, [&](int64_t d, int) { kernels.outer_fold(call, d); });
            parallel_for(threads, blocks, [&](int64_t b, int) {
                if (parts[b].first < parts[b].last) body(parts[b], b);
            });
            after(entries);
        }
    }
};

// Where args.statistics holds the mean and the biased variance [H] of hidden layer `layer`.
template <typename T>
struct LayerStatistics {
    T *mean, *var;

    LayerStatistics(const LocalActivation& args, const PackedMlp<T>& m, int layer)
        : mean(static_cast<T*>(args.statistics)) {
        int64_t widths = 0;
        for (int l = 0; l < m.hidden; widths += m.width[l++])
            if (l < layer) mean += m.width[l];
        var = mean + widths;
    }
};

int64_t row_of(const LocalActivation& args, int64_t position) {
    return args.row_index ? args.row_index[position] : position;
}

// Mean and biased variance of every hidden layer in turn, since each needs those before it.
template <typename T>
void take_statistics(Run<T>& run) {
    const PackedMlp<T>& m = run.weights.mlp;
    for (int l = 0; l < m.hidden; ++l) {
        const int64_t width_p = m.width_p[l];
        const Buffer<double> memory(2 * width_p * std::max<int64_t>(run.blocks, 1), true);
        std::vector<Moments> moments(run.blocks);
        for (int64_t b = 0; b < run.blocks; ++b)
            moments[b] = {0, memory.data() + 2 * b * width_p, memory.data() + (2 * b + 1) * width_p};
        run.for_blocks([&](const Block<T>& block, int64_t b) { run.kernels.moments(run.call, block, l, moments[b]); });
        const LayerStatistics<T> statistics(run.args, m, l);
        for (int64_t h = 0; h < m.width[l]; ++h) {
            double count = 0, total = 0, squares = 0;
            for (const Moments& block : moments) {
                if (block.count == 0) continue;
                const double merged = count + block.count, delta = block.mean[h] - total;
                total += delta * block.count / merged;
                squares += block.squares[h] + delta * delta * count * block.count / merged;
                count = merged;
            }
            statistics.mean[h] = T(total);
            statistics.var[h] = count > 0 ? T(squares / count) : T(1);
        }
        run.weights.set_statistics(run.args, l, statistics.mean, statistics.var);
    }
}

// A candidate whose history several entries share: the sum of its slots, softmax rescaled to the largest top.
template <typename T>
void merge_forward(const Call<T>& call, const Merge& merge) {
    const LocalActivation& args = call.args;
    const PackedMlp<T>& m = call.mlp;
    const int64_t stride = m.dim_p + 2;
    const T* slot = call.partial_sums + merge.first * stride;
    T* pooled = call.pooled + merge.query * m.dim;
    std::fill(pooled, pooled + m.dim, T(0));
    T top = -std::numeric_limits<T>::infinity(), total = 0;
    const bool softmax = args.normalize == Normalize::kSoftmax;
    if (softmax)
        for (int64_t i = 0; i < merge.count; ++i)
            if (!(slot[i * stride + m.dim_p] <= top)) top = slot[i * stride + m.dim_p];
    for (int64_t i = 0; i < merge.count; ++i, slot += stride) {
        if (softmax && slot[m.dim_p + 1] == 0) continue;  // every row of the run is masked
        const T rescale = softmax ? std::exp(slot[m.dim_p] - top) : T(1);
        total += slot[m.dim_p + 1] * rescale;
        for (int64_t d = 0; d < m.dim; ++d) pooled[d] += slot[d] * rescale;
    }
    if (!softmax) return;
    if (total != 0)
        for (int64_t d = 0; d < m.dim; ++d) pooled[d] /= total;
    args.logsumexp[merge.query] = double(top) + std::log(double(total));
    if (merge.pair < 0) return;
    for (int64_t t = 0; t < merge.rows; ++t) {
        const bool counts = !args.row_mask || args.row_mask[row_of(args, merge.position + t)];
        T& weight = call.pair_weights[merge.pair + t];
        weight = counts ? std::exp(weight - top) / total : T(0);
    }
}

// out[0 .. count) = sum over `parts` stretches of `count` elements, `stride` apart
template <typename T>
void add_parts(const T* from, int64_t parts, int64_t stride, int64_t count, T* out) {
    std::copy_n(from, count, out);
    for (int64_t p = 1; p < parts; ++p)
        for (int64_t i = 0; i < count; ++i) out[i] += from[p * stride + i];
}

// Gradients through the batch statistics, from the last hidden layer down: each needs those above it.
template <typename T>
void take_through_statistics(Run<T>& run, BlockGradients<T>& gradients) {
    const PackedMlp<T>& m = run.weights.mlp;
    for (int l = 0; l < m.hidden; ++l) {
        const LayerStatistics<T> statistics(run.args, m, l);
        run.weights.set_statistics(run.args, l, statistics.mean, statistics.var);
    }
    for (int l = m.hidden - 1; l >= 0 && run.plan.pairs > 0; --l) {
        gradients.clear(run.threads);
        run.for_blocks(
            [&](const Block<T>& block, int64_t b) { run.kernels.backward(run.call, block, l, gradients.of(b)); });
        gradients.add_up(run.threads);
        run.weights.set_through_statistics(l, gradients.of(0).params[l][1], gradients.of(0).params[l][2],
                                           run.plan.pairs);
    }
}

// What a round leaves of outer features: its share of the weights' gradients, and its queries' gradients.
template <typename T>
void finish_round(Run<T>& run, const std::vector<int64_t>& entries) {
    constexpr int64_t kRows = 8;
    const LocalActivation& args = run.args;
    const Call<T>& call = run.call;
    parallel_for(run.threads, args.dim, [&](int64_t d, int) { run.kernels.outer_weight_gradients(call, d); });
    if (!args.grad_query.needed) return;
    const int64_t count = call.outer.count;
    parallel_for(run.threads, (count + kRows - 1) / kRows, [&](int64_t part, int) {
        run.kernels.outer_query_gradients(call, part * kRows, std::min(count, (part + 1) * kRows));
    });
    for (int64_t i = 0; i < count; ++i) {
        const Entry& entry = run.plan.entries[entries[i]];
        const T* dq = call.outer.grad_queries + i * run.weights.mlp.dim_p;
        if (entry.partial >= 0)
            std::copy_n(dq, args.dim, call.partial_sums + entry.partial * args.dim);
        else
            run.kernels.write_query_grad(args, entry.query, dq);
    }
}

void clear_history_gradients(const LocalActivation& args) {
    const int64_t element = args.dtype == DType::kDouble ? 8 : args.dtype == DType::kFloat ? 4 : 2;
    for (int k = 0; k < args.history.count; ++k)
        std::fill_n(static_cast<char*>(args.grad_history.values[k]),
                    args.history_rows * args.history.tables[k].width * element, 0);
}

template <typename T>
void forward(const LocalActivation& args, int threads) {
    Run<T> run(args, false, threads);
    if (args.dice_training) take_statistics(run);
    run.for_blocks([&](const Block<T>& block, int64_t) { run.kernels.forward(run.call, block); });
    for (const Merge& merge : run.plan.merges) merge_forward(run.call, merge);
    for (const int64_t query : run.plan.empty) {
        std::fill_n(run.call.pooled + query * args.dim, args.dim, T(0));
        if (args.normalize == Normalize::kSoftmax) args.logsumexp[query] = -std::numeric_limits<double>::infinity();
    }
}

// Gradients that several blocks have in parts, and those of candidates without behaviours, which are 0.
template <typename T>
void merge_backward(Run<T>& run) {
    const LocalActivation& args = run.args;
    const int64_t dim = args.dim, dim_p = run.weights.mlp.dim_p;
    Buffer<T> row(dim_p * run.threads, true);  // of each thread
    if (args.grad_query.needed) {
        for (const Merge& merge : run.plan.merges) {
            add_parts(run.call.partial_sums + merge.first * dim, merge.count, dim, dim, row.data());
            run.kernels.write_query_grad(args, merge.query, row.data());
        }
        std::fill_n(row.data(), dim, T(0));
        for (const int64_t query : run.plan.empty) run.kernels.write_query_grad(args, query, row.data());
    }
    if (!args.grad_history.needed) return;
    for (const RowMerge& merge : run.plan.row_merges)
        parallel_for(run.threads, merge.rows, [&](int64_t t, int thread) {
            T* sum = row.data() + thread * dim_p;
            add_parts(run.call.partial_rows + (merge.first + t) * dim, merge.count, merge.rows * dim, dim, sum);
            run.kernels.write_history_grad(args, row_of(args, merge.position + t), sum);
        });
}

template <typename T>
void backward(const LocalActivation& args, int threads) {
    Run<T> run(args, true, threads);
    BlockGradients<T> gradients(args, run.weights.mlp, run.blocks);
    if (args.dice_training) take_through_statistics(run, gradients);
    gradients.clear(run.threads);
    if (args.grad_history.needed && run.plan.touched_rows < args.history_rows) clear_history_gradients(args);
    const int everything = run.weights.mlp.hidden;
    run.for_blocks(
        [&](const Block<T>& block, int64_t b) { run.kernels.backward(run.call, block, everything, gradients.of(b)); },
        [&](const std::vector<int64_t>& entries) { finish_round(run, entries); });
    gradients.add_up(run.threads);
    write_weight_gradients(args, run.weights.mlp, gradients.of(0), run.call.outer, run.threads);
    merge_backward(run);
}

}  // namespace
}  // namespace din_kernels::cpu

namespace din_kernels {

void local_activation_forward(const LocalActivation& call, int threads) {
    cpu::with_arithmetic_type(call.dtype, [&](auto zero) { cpu::forward<decltype(zero)>(call, threads); });
}
void local_activation_backward(const LocalActivation& call, int threads) {
    cpu::with_arithmetic_type(call.dtype, [&](auto zero) { cpu::backward<decltype(zero)>(call, threads); });
}

}  // namespace din_kernels
