// Forward of dice. In training one pass over x takes the statistics by a stable merge and a second one applies the
// activation; in evaluation there is the second alone. All sums are added in a fixed order.
#include "common/activation.cuh"
#include "common/block_scan.cuh"
#include "common/moments.cuh"
#include "dice/call.cuh"

namespace din_kernels::cuda {
namespace {

// partials [chunks, 0 .. 1, C] = mean, sum of squared deviations; row_counts [chunks] = valid rows. A thread takes
// Welford's steps and the threads of a column are merged by Chan's: nothing is subtracted from a large sum.
template <typename T, int kWidth>
__global__ void dice_statistics(Global<const T> x, Global<const bool> mask, int64_t rows, int64_t channels,
                                DicePlan plan, Global<float> partials, Global<float> row_counts) {
    const DiceShare share(rows, plan, kWidth);
    const int columns = plan.lanes * kWidth;
    const Shared<float> group_rows(0, share.groups);
    const Shared<float> means(uint32_t(share.groups) * 4, share.groups * columns);
    const Shared<float> squares(uint32_t(share.groups * (1 + columns)) * 4, share.groups * columns);
    // The thread's rows.
    float n = 0;
    Moments moments[kWidth];
    for (int64_t row = share.row; row < share.end; row += share.groups) {
        if (mask && !mask[row]) continue;
        n += 1.0f;
        if (share.first >= channels) continue;
        const Vector<T, kWidth> values = x.template load<kWidth>(row * channels + share.first);
        const float part = 1.0f / n;
        for (int i = 0; i < kWidth; ++i) moments[i].add(widen(values.at[i]), part);
    }
    if (share.lane == 0) group_rows.store(share.group, n);
    for (int i = 0; i < kWidth; ++i) {
        means.store(share.group * columns + share.lane * kWidth + i, moments[i].mean);
        squares.store(share.group * columns + share.lane * kWidth + i, moments[i].square);
    }
    __syncthreads();
    // The groups of a column, in their order.
    for (int column = int(threadIdx.x); column < columns; column += kDiceThreads) {
        Moments all;
        for (int group = 0; group < share.groups; ++group)
            all.join({group_rows[group], means[group * columns + column], squares[group * columns + column]});
        const int64_t channel = int64_t(blockIdx.y) * columns + column;
        if (channel < channels) {
            partials.store(int64_t(blockIdx.x) * 3 * channels + channel, all.mean);
            partials.store((int64_t(blockIdx.x) * 3 + 1) * channels + channel, all.square);
        }
        if (channel == 0) row_counts.store(blockIdx.x, all.rows);
    }
}

// A warp per channel joins the chunks. Without a valid row the mean is 0 and the variance 1.
__global__ void dice_join_statistics(Global<const float> partials, Global<const float> row_counts, int64_t chunks,
                                     int64_t channels, Global<float> mean, Global<float> var, Global<int64_t> count) {
    const int64_t channel = blockIdx.x;
    Moments all;
    int64_t rows = 0;  // a float does not count beyond 2^24
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += 32) {
        all.join({row_counts[chunk], partials[chunk * 3 * channels + channel],
                  partials[(chunk * 3 + 1) * channels + channel]});
        rows += int64_t(row_counts[chunk]);
    }
    all = warp_join(all);
    rows = warp_sum(rows);
    if (threadIdx.x != 0) return;
    mean.store(channel, all.mean), var.store(channel, rows > 0 ? all.square / float(rows) : 1.0f);
    if (channel == 0) count.store(0, rows);
}

// One block counts all rows.
__global__ void dice_count(Global<const bool> mask, int64_t rows, Global<int64_t> count) {
    int64_t valid = 0;
    if (!mask) {
        valid = threadIdx.x == 0 ? rows : 0;
    } else {
#pragma unroll 8
        for (int64_t row = threadIdx.x; row < rows; row += kScanThreads) valid += mask[row] ? 1 : 0;
    }
    const int64_t total = block_scan(valid, Shared<int64_t>(0, kScanThreads / 32)).total;
    if (threadIdx.x == 0) count.store(0, total);
}

// y of every row, 0 where the row is not valid.
template <typename T, int kWidth>
__global__ void dice_apply(Global<const T> x, Global<const bool> mask, int64_t rows, DiceChannels channels,
                           DicePlan plan, Global<T> y) {
    const DiceShare share(rows, plan, kWidth);
    if (share.first >= channels.count) return;
    DiceChannel channel[kWidth];
    for (int i = 0; i < kWidth; ++i) channel[i] = channel_at(channels, share.first + i);
    for (int64_t row = share.row; row < share.end; row += share.groups) {
        const int64_t at = row * channels.count + share.first;
        Vector<T, kWidth> values{};
        if (!mask || mask[row]) {
            values = x.template load<kWidth>(at);
            for (int i = 0; i < kWidth; ++i) {
                const DiceChannel& c = channel[i];
                const float value = widen(values.at[i]);
                const float p = sigmoid<false>(c.gate(c.normalized(value)));
                values.at[i] = narrow<T>(activations::Dice<false>::gated(value, c.alpha, p));
            }
        }
        y.template store<kWidth>(at, values);
    }
}

}  // namespace

int64_t dice_workspace(int64_t rows, int64_t channels) { return plan_dice(rows, channels, 1).bytes; }

void count_valid_rows(const Dice& call, Stream stream) {
    launch("dice_count", dice_count, Grid{1}, kScanThreads, kScanThreads / 32 * sizeof(int64_t), stream,
           Global<const bool>(call.mask, call.rows), call.rows, Global<int64_t>(call.count, 1));
}

void dice_forward(const Dice& call, Stream stream) {
    with_dice_plan(call, {call.x, call.y}, [&](auto zero, auto width, const DicePlan& plan, Grid grid) {
        using T = decltype(zero);
        const DiceArrays<T> arrays{call};
        if (call.training) {
            const int64_t partials_size = plan.chunks * 3 * call.channels;
            const auto partials = carved_array<float>(call.workspace, plan.partials, partials_size);
            const auto row_counts = carved_array<float>(call.workspace, plan.row_counts, plan.chunks);
            const size_t shared = size_t(kDiceThreads / plan.lanes + 2 * kDiceThreads * width()) * 4;
            launch("dice_statistics", dice_statistics<T, width()>, grid, kDiceThreads, shared, stream,
                   arrays.in(call.x), arrays.mask(), call.rows, call.channels, plan, partials, row_counts);
            launch("dice_join_statistics", dice_join_statistics, Grid{call.channels}, 32, 0, stream,
                   carved_array<const float>(call.workspace, plan.partials, partials_size),
                   carved_array<const float>(call.workspace, plan.row_counts, plan.chunks), plan.chunks, call.channels,
                   arrays.per_channel(call.mean), arrays.per_channel(call.var), Global<int64_t>(call.count, 1));
        } else {
            count_valid_rows(call, stream);
        }
        launch("dice_apply", dice_apply<T, width()>, grid, kDiceThreads, 0, stream, arrays.in(call.x), arrays.mask(),
               call.rows, arrays.channels(), plan, arrays.out(call.y));
    });
}

}  // namespace din_kernels::cuda
