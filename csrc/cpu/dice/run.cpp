// The call around the kernels, compiled once: blocks of rows on the threads, and what is summed over blocks.
#include "din_kernels/dice.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "common/buffer.h"
#include "common/dispatch.h"
#include "common/parallel.h"
#include "dice/call.h"

namespace din_kernels {
namespace cpu {
namespace {

// What the kernels need per channel.
enum Number { kAlpha, kMean, kScale, kBias, kMeanU, kMeanUd, kNumbers };

template <typename S>
struct Problem {
    using T = Wide<S>;
    const Dice& args;
    const int64_t block_rows = std::max<int64_t>(1, kDiceBlock / std::max<int64_t>(args.channels, 1));
    const int64_t blocks = (args.rows + block_rows - 1) / block_rows;
    const int64_t padded = (args.channels + kDicePad - 1) / kDicePad * kDicePad;
    Buffer<T> numbers{kNumbers * padded, true};
    std::vector<int64_t> counts = valid_rows();
    int64_t count = std::accumulate(counts.begin(), counts.end(), int64_t(0));

    // [blocks]
    std::vector<int64_t> valid_rows() const {
        std::vector<int64_t> found(blocks);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t from = block * block_rows, to = std::min(args.rows, from + block_rows);
            found[block] = args.mask ? std::count(args.mask + from, args.mask + to, true) : to - from;
        }
        return found;
    }
    double divisor() const { return double(std::max<int64_t>(count, 1)); }
    double root(int64_t c) const { return 1 / std::sqrt(double(static_cast<const T*>(args.var)[c]) + args.eps); }
    bool streams(const void* rows) const {
        constexpr int64_t kLine = 64;
        const int64_t row = args.channels * int64_t(sizeof(S));
        return args.rows * row >= kDiceStream && row % kLine == 0 && reinterpret_cast<uintptr_t>(rows) % kLine == 0;
    }
    T* of(Number which) const { return numbers.data() + which * padded; }
    void prepare() const {
        const T *alpha = static_cast<const T*>(args.alpha), *mean = static_cast<const T*>(args.mean);
        const T *weight = static_cast<const T*>(args.weight), *bias = static_cast<const T*>(args.bias);
        for (int64_t c = 0; c < args.channels; ++c) {
            of(kAlpha)[c] = alpha[c], of(kMean)[c] = mean[c];
            of(kScale)[c] = T(root(c) * (weight ? double(weight[c]) : 1));
            of(kBias)[c] = bias ? bias[c] : T(0);
        }
    }
    DiceCall<S> call(T* partials) const {
        return {args,       block_rows, padded,     of(kAlpha),  of(kMean),
                of(kScale), of(kBias),  of(kMeanU), of(kMeanUd), partials};
    }
};

// Statistics of blocks to those of all rows: M2 = sum of M2_b + n_b (mean_b - mean)^2, in double.
template <typename S>
void combine(const Problem<S>& problem, const Wide<S>* partials) {
    const int64_t channels = problem.args.channels, padded = problem.padded;
    const double n = problem.divisor();
    std::vector<double> mean(channels), squares(channels);
    for (int64_t block = 0; block < problem.blocks; ++block) {
        const Wide<S>*m = partials + block * kStatistics * padded, *rest = m + padded;
        const double rows = double(problem.counts[block]);
        for (int64_t c = 0; c < channels; ++c) mean[c] += rows * double(m[c]) + double(rest[c]);
    }
    for (double& each : mean) each /= n;
    for (int64_t block = 0; block < problem.blocks; ++block) {
        const Wide<S>*m = partials + block * kStatistics * padded, *rest = m + padded, *around = rest + padded;
        const double rows = double(problem.counts[block]), per_row = rows > 0 ? 1 / rows : 0;
        for (int64_t c = 0; c < channels; ++c) {
            // Around the block's own mean instead of m, the sum of (x - m)^2 is the given one less rows (rest /
            // rows)^2.
            const double off = double(rest[c]) * per_row, d = double(m[c]) + off - mean[c];
            squares[c] += double(around[c]) + rows * (d * d - off * off);
        }
    }
    for (int64_t c = 0; c < channels; ++c) {
        static_cast<Wide<S>*>(problem.args.mean)[c] = Wide<S>(mean[c]);
        static_cast<Wide<S>*>(problem.args.var)[c] = Wide<S>(problem.count > 0 ? std::max(squares[c], 0.0) / n : 1);
    }
}

template <typename S>
int64_t forward(const Dice& args, int threads) {
    const Problem<S> problem{args};
    const DiceKernels<S>& kernels = dice_kernels_here().of<S>();
    threads = usable_threads(threads, problem.blocks);
    const Buffer<Wide<S>> partials(args.training ? problem.blocks * kStatistics * problem.padded : 0);
    const DiceCall<S> call = problem.call(partials.data());
    if (args.training) {
        parallel_for(threads, problem.blocks, [&](int64_t block, int) { kernels.statistics(call, block); });
        combine(problem, partials.data());
    }
    problem.prepare();
    const auto kernel = kernels.forward[problem.streams(args.y)];
    // The last blocks first: they are what the statistics left in the cache.
    parallel_for(threads, problem.blocks, [&](int64_t block, int) { kernel(call, problem.blocks - 1 - block); });
    return problem.count;
}

// Gradients per channel, and mean_u and mean_ud for the gradient of x, from the sums of the blocks.
template <typename S>
void finish_channels(const Problem<S>& problem, const Wide<S>* partials) {
    using T = Wide<S>;
    const Dice& args = problem.args;
    const int64_t padded = problem.padded;
    std::vector<double> sums(kGradSums * padded);
    for (int64_t block = 0; block < problem.blocks; ++block) {
        const T* part = partials + block * kGradSums * padded;
        for (int64_t i = 0; i < kGradSums * padded; ++i) sums[i] += double(part[i]);
    }
    T *alpha = static_cast<T*>(args.grad_alpha), *weight = static_cast<T*>(args.grad_weight);
    T* bias = static_cast<T*>(args.grad_bias);
    const double n = problem.divisor();
    for (int64_t c = 0; c < args.channels; ++c) {
        const double root = problem.root(c), u = sums[padded + c], ud = sums[2 * padded + c];
        alpha[c] = T(sums[c]);
        if (weight) weight[c] = T(root * ud);
        if (bias) bias[c] = T(u);
        problem.of(kMeanU)[c] = T(u / n);
        problem.of(kMeanUd)[c] = T(root * root * ud / n);
    }
}

template <typename S>
void backward(const Dice& args, int threads) {
    const Problem<S> problem{args};
    const DiceKernels<S>& kernels = dice_kernels_here().of<S>();
    threads = usable_threads(threads, problem.blocks);
    problem.prepare();
    const Buffer<Wide<S>> partials(problem.blocks * kGradSums * problem.padded);
    const DiceCall<S> call = problem.call(partials.data());
    const auto first = (args.training ? kernels.backward_sums : kernels.backward)[problem.streams(args.grad_x)];
    parallel_for(threads, problem.blocks, [&](int64_t block, int) { first(call, block); });
    finish_channels(problem, partials.data());
    if (!args.training) return;
    parallel_for(threads, problem.blocks,
                 [&](int64_t block, int) { kernels.backward_rest(call, problem.blocks - 1 - block); });
}

}  // namespace
}  // namespace cpu

int64_t dice_forward(const Dice& call, int threads) {
    return cpu::with_dtype(call.dtype, [&](auto zero) { return cpu::forward<decltype(zero)>(call, threads); });
}
void dice_backward(const Dice& call, int threads) {
    cpu::with_dtype(call.dtype, [&](auto zero) { cpu::backward<decltype(zero)>(call, threads); });
}

}  // namespace din_kernels
