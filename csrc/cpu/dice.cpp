// The call around the kernels, compiled once: blocks of rows on the threads, and what is summed over blocks.
#include "din_kernels/dice.h"

#include <cmath>
#include <vector>

#include "buffer.h"
#include "dice_call.h"
#include "parallel.h"

namespace din_kernels {
namespace cpu {
namespace {

template <typename S>
struct Problem {
    using T = Wide<S>;
    const DiceArgs<S>& args;
    const int64_t block_rows = std::max<int64_t>(1, kDiceBlock / std::max<int64_t>(args.channels, 1));
    const int64_t blocks = (args.rows + block_rows - 1) / block_rows;
    Buffer<T> scale{args.channels}, bias{args.channels};
    std::vector<int64_t> counts = valid_rows();

    // [blocks]
    std::vector<int64_t> valid_rows() const {
        std::vector<int64_t> found(blocks);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t from = block * block_rows, to = std::min(args.rows, from + block_rows);
            found[block] = args.mask ? std::count(args.mask + from, args.mask + to, true) : to - from;
        }
        return found;
    }
    int64_t count() const {
        int64_t total = 0;
        for (const int64_t each : counts) total += each;
        return total;
    }
    double root(int64_t c) const { return 1 / std::sqrt(double(args.var[c]) + args.eps); }
    void prepare() const {
        for (int64_t c = 0; c < args.channels; ++c) {
            scale.data()[c] = T(root(c) * (args.weight ? double(args.weight[c]) : 1));
            bias.data()[c] = args.bias ? args.bias[c] : T(0);
        }
    }
    DiceCall<S> call() const {
        return {&args, nullptr, block_rows, scale.data(), bias.data(), nullptr, nullptr, nullptr, nullptr};
    }
};

// Statistics of blocks to those of all rows: M2 = sum of M2_b + n_b (mean_b - mean)^2, in double.
template <typename S>
void combine(const Problem<S>& problem, const Wide<S>* partials) {
    const int64_t channels = problem.args.channels;
    const double n = double(std::max<int64_t>(problem.count(), 1));
    std::vector<double> mean(channels), squares(channels);
    for (int64_t block = 0; block < problem.blocks; ++block) {
        const Wide<S>* part = partials + block * kStatistics * channels;
        for (int64_t c = 0; c < channels; ++c)
            mean[c] += (double(problem.counts[block]) * double(part[c]) + double(part[channels + c])) / n;
    }
    for (int64_t block = 0; block < problem.blocks; ++block) {
        const Wide<S>* part = partials + block * kStatistics * channels;
        const double rows = double(std::max<int64_t>(problem.counts[block], 1));
        for (int64_t c = 0; c < channels; ++c) {
            // Around the block's own mean instead of m, the sum of (x - m)^2 is the given one less rows (rest /
            // rows)^2.
            const double rest = double(part[channels + c]) / rows, d = double(part[c]) + rest - mean[c];
            squares[c] += double(part[2 * channels + c]) - rows * rest * rest;
            if (problem.counts[block] > 0) squares[c] += rows * d * d;
        }
    }
    for (int64_t c = 0; c < channels; ++c) {
        problem.args.mean[c] = Wide<S>(mean[c]);
        problem.args.var[c] = Wide<S>(problem.count() > 0 ? std::max(squares[c], 0.0) / n : 1);
    }
}

}  // namespace
}  // namespace cpu

using namespace cpu;

template <typename S>
int64_t dice_forward(const DiceArgs<S>& args, S* y, int threads) {
    const Problem<S> problem{args};
    const DiceKernels<S>& kernels = dice_kernels_here().of<S>();
    threads = usable_threads(threads, problem.blocks);
    DiceCall<S> call = problem.call();
    call.y = y;
    if (args.training) {
        const Buffer<Wide<S>> partials(problem.blocks * kStatistics * args.channels);
        call.partials = partials.data();
        parallel_for(threads, problem.blocks,
                     [&](int64_t block, int) { kernels.statistics(call, block, problem.counts[block]); });
        combine(problem, partials.data());
    }
    problem.prepare();
    // The last blocks first: they are what the statistics left in the cache.
    parallel_for(threads, problem.blocks,
                 [&](int64_t block, int) { kernels.forward(call, problem.blocks - 1 - block); });
    return problem.count();
}

template <typename S>
void dice_backward(const DiceArgs<S>& args, const DiceGrads<S>& grads, int threads) {
    using T = Wide<S>;
    const Problem<S> problem{args};
    const DiceKernels<S>& kernels = dice_kernels_here().of<S>();
    const int64_t channels = args.channels;
    threads = usable_threads(threads, problem.blocks);
    problem.prepare();
    const Buffer<T> partials(problem.blocks * kGradSums * channels), means(2 * channels, true);
    DiceCall<S> call = problem.call();
    call.grads = &grads, call.partials = partials.data();
    call.mean_u = means.data(), call.mean_ud = means.data() + channels;
    parallel_for(threads, problem.blocks, [&](int64_t block, int) { kernels.grad_sums(call, block); });

    std::vector<double> sums(kGradSums * channels);
    for (int64_t block = 0; block < problem.blocks; ++block)
        for (int64_t i = 0; i < kGradSums * channels; ++i)
            sums[i] += double(partials.data()[block * kGradSums * channels + i]);
    const double n = double(std::max<int64_t>(problem.count(), 1));
    for (int64_t c = 0; c < channels; ++c) {
        const double root = problem.root(c), u = sums[channels + c], ud = sums[2 * channels + c];
        grads.alpha[c] = T(sums[c]);
        if (grads.weight) grads.weight[c] = T(root * ud);
        if (grads.bias) grads.bias[c] = T(u);
        if (!args.training) continue;
        means.data()[c] = T(u / n);
        means.data()[channels + c] = T(root * root * ud / n);
    }
    parallel_for(threads, problem.blocks,
                 [&](int64_t block, int) { kernels.backward(call, problem.blocks - 1 - block); });
}

#define DIN_KERNELS_INSTANTIATE(S)                              \
    template int64_t dice_forward(const DiceArgs<S>&, S*, int); \
    template void dice_backward(const DiceArgs<S>&, const DiceGrads<S>&, int);
DIN_KERNELS_INSTANTIATE(float)
DIN_KERNELS_INSTANTIATE(double)
DIN_KERNELS_INSTANTIATE(BFloat16)
DIN_KERNELS_INSTANTIATE(Float16)

}  // namespace din_kernels
