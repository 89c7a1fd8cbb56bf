// Dice: statistics in one pass with a stable merge, then the activation; backward in one pass for the sums and one for
// x, in evaluation one in all. All sums are added in a fixed order.
#include "din_kernels/cuda/dice.h"

#include "common/accessors.cuh"
#include "common/block_scan.cuh"
#include "dice/plan.h"
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "common/moments.cuh"
#include "common/activation.cuh"

namespace din_kernels::cuda {
namespace {

struct Channels {
    int64_t count;                            // C
    Global<const float> alpha, weight, bias;  // [C]; weight and bias or null
    Global<const float> mean, var;            // [C]
    float eps;
};

struct Channel {
    float alpha, weight, bias, mean, rstd;
};
__device__ inline Channel channel_at(const Channels& channels, int64_t at) {
    return {channels.alpha[at], channels.weight ? channels.weight[at] : 1.0f, channels.bias ? channels.bias[at] : 0.0f,
            channels.mean[at], 1.0f / sqrtf(channels.var[at] + channels.eps)};
}

// The rows of a chunk and the channels of a stripe, dealt to threads: `width` channels from `first` on, rows row, row +
// step, ... below end.
struct Share {
    int64_t first, row, end;
    int lane, group, groups;

    __device__ Share(int64_t rows, const DicePlan& plan, int width)
        : first((int64_t(blockIdx.y) * plan.lanes + int(threadIdx.x) % plan.lanes) * width),
          lane(int(threadIdx.x) % plan.lanes),
          group(int(threadIdx.x) / plan.lanes),
          groups(kDiceThreads / plan.lanes) {
        const int64_t begin = int64_t(blockIdx.x) * plan.rows_per_chunk;
        end = begin + plan.rows_per_chunk < rows ? begin + plan.rows_per_chunk : rows;
        row = begin + group;
    }
};

// partials [chunks, 0 .. 1, C] = mean, sum of squared deviations; row_counts [chunks] = valid rows. Welford per thread,
// then Chan's merge of the threads of a column: nothing is subtracted from a large sum.
template <typename T, int kWidth>
__global__ void dice_statistics(Global<const T> x, Global<const bool> mask, int64_t rows, int64_t channels,
                                DicePlan plan, Global<float> partials, Global<float> row_counts) {
    const Share share(rows, plan, kWidth);
    const int columns = plan.lanes * kWidth;
    const Shared<float> counts(0, share.groups);
    const Shared<float> means(uint32_t(share.groups) * 4, share.groups * columns);
    const Shared<float> squares(uint32_t(share.groups * (1 + columns)) * 4, share.groups * columns);
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
    if (share.lane == 0) counts.store(share.group, n);
    for (int i = 0; i < kWidth; ++i) {
        means.store(share.group * columns + share.lane * kWidth + i, moments[i].mean);
        squares.store(share.group * columns + share.lane * kWidth + i, moments[i].square);
    }
    __syncthreads();
    for (int column = int(threadIdx.x); column < columns; column += kDiceThreads) {
        Moments all;
        for (int group = 0; group < share.groups; ++group)
            all.join({counts[group], means[group * columns + column], squares[group * columns + column]});
        const int64_t channel = int64_t(blockIdx.y) * columns + column;
        if (channel < channels) {
            partials.store(int64_t(blockIdx.x) * 3 * channels + channel, all.mean);
            partials.store((int64_t(blockIdx.x) * 3 + 1) * channels + channel, all.square);
        }
        if (channel == 0) row_counts.store(blockIdx.x, all.rows);
    }
}

// A warp per channel; no valid row: mean 0, variance 1.
__global__ void dice_join_statistics(Global<const float> partials, Global<const float> row_counts, int64_t chunks,
                                     int64_t channels, Global<float> mean, Global<float> var, Global<int64_t> count) {
    const int64_t channel = blockIdx.x;
    Moments all;
    int64_t rows = 0;  // beyond 2^24 a float counts no longer
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

// A block: valid rows, where no statistics are taken.
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

template <typename T, int kWidth>
__global__ void dice_apply(Global<const T> x, Global<const bool> mask, int64_t rows, Channels channels, DicePlan plan,
                           Global<T> y) {
    const Share share(rows, plan, kWidth);
    if (share.first >= channels.count) return;
    Channel channel[kWidth];
    for (int i = 0; i < kWidth; ++i) channel[i] = channel_at(channels, share.first + i);
    for (int64_t row = share.row; row < share.end; row += share.groups) {
        const int64_t at = row * channels.count + share.first;
        Vector<T, kWidth> values{};
        if (!mask || mask[row]) {
            values = x.template load<kWidth>(at);
            for (int i = 0; i < kWidth; ++i) {
                const Channel& c = channel[i];
                const float value = widen(values.at[i]), u = (value - c.mean) * c.rstd;
                const float p = sigmoid<false>(c.weight * u + c.bias);
                values.at[i] = narrow<T>(value * (c.alpha + (1.0f - c.alpha) * p));
            }
        }
        y.template store<kWidth>(at, values);
    }
}

// Of one element, with t = weight u + bias and u = (x - mean) rstd.
struct DiceGradient {
    float direct;  // g (alpha + (1 - alpha) p)
    float dt, u;   // dt = g x (1 - alpha) p (1 - p)
    float dalpha;  // g x (1 - p)
};
__device__ inline DiceGradient dice_gradient(const Channel& c, float x, float g) {
    // 1 - p from the exponential, not by subtraction: near p = 1 nothing would be left of it.
    const float u = (x - c.mean) * c.rstd, t = c.weight * u + c.bias;
    const float small = expf(-fabsf(t)), larger = 1.0f / (1.0f + small), smaller = small * larger;
    const float p = t >= 0.0f ? larger : smaller, q = t >= 0.0f ? smaller : larger;
    return {g * (c.alpha + (1.0f - c.alpha) * p), g * x * (1.0f - c.alpha) * p * q, u, g * x * q};
}

// gradient(i, channel, DiceGradient) -> dx for channel first + i of the share in every valid row, the rest of grad_x
// zeros; grad_x may be null.
template <typename T, int kWidth, typename Gradient>
__device__ void for_gradients(const Share& share, const Global<const T>& x, const Global<const T>& grad_y,
                              const Global<const bool>& mask, const Channels& channels, const Global<T>& grad_x,
                              const Gradient& gradient) {
    Channel channel[kWidth];
    for (int i = 0; i < kWidth; ++i) channel[i] = channel_at(channels, share.first + i);
    for (int64_t row = share.row; row < share.end; row += share.groups) {
        const int64_t at = row * channels.count + share.first;
        Vector<T, kWidth> out{};
        if (!mask || mask[row]) {
            const Vector<T, kWidth> values = x.template load<kWidth>(at);
            const Vector<T, kWidth> grads = grad_y.template load<kWidth>(at);
            for (int i = 0; i < kWidth; ++i)
                out.at[i] = narrow<T>(
                    gradient(i, channel[i], dice_gradient(channel[i], widen(values.at[i]), widen(grads.at[i]))));
        }
        if (grad_x) grad_x.template store<kWidth>(at, out);
    }
}

// partials [chunks, 3, C] = sums of dt, dt u and dalpha; in evaluation also grad_x (null in training), which then needs
// no sums:
//   dx = direct + rstd weight dt
template <typename T, int kWidth>
__global__ void dice_gradient_sums(Global<const T> x, Global<const T> grad_y, Global<const bool> mask, int64_t rows,
                                   Channels channels, DicePlan plan, Global<T> grad_x, Global<float> partials) {
    const Share share(rows, plan, kWidth);
    const int columns = plan.lanes * kWidth;
    const Shared<float> scratch(0, 3 * share.groups * columns);
    float sums[3][kWidth] = {};
    if (share.first < channels.count)
        for_gradients<T, kWidth>(share, x, grad_y, mask, channels, grad_x,
                                 [&](int i, const Channel& c, const DiceGradient& d) {
                                     sums[0][i] += d.dt, sums[1][i] += d.dt * d.u, sums[2][i] += d.dalpha;
                                     return d.direct + c.rstd * c.weight * d.dt;
                                 });
    for (int which = 0; which < 3; ++which)
        for (int i = 0; i < kWidth; ++i)
            scratch.store((which * share.groups + share.group) * columns + share.lane * kWidth + i, sums[which][i]);
    __syncthreads();
    for (int at = int(threadIdx.x); at < 3 * columns; at += kDiceThreads) {
        const int which = at / columns, column = at % columns;
        float total = 0;
        for (int group = 0; group < share.groups; ++group)
            total += scratch[(which * share.groups + group) * columns + column];
        const int64_t channel = int64_t(blockIdx.y) * columns + column;
        if (channel < channels.count)
            partials.store((int64_t(blockIdx.x) * 3 + which) * channels.count + channel, total);
    }
}

// A warp per channel: the gradients of alpha, weight and bias, and the sums of dt and dt u for grad_x.
__global__ void dice_join_sums(Global<const float> partials, int64_t chunks, int64_t channels, Global<float> sums,
                               Global<float> grad_alpha, Global<float> grad_weight, Global<float> grad_bias) {
    const int64_t channel = blockIdx.x;
    float total[3] = {};
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += 32)
        for (int which = 0; which < 3; ++which) total[which] += partials[(chunk * 3 + which) * channels + channel];
    for (float& each : total) each = warp_sum(each);
    if (threadIdx.x != 0) return;
    for (int which = 0; which < 3; ++which) sums.store(which * channels + channel, total[which]);
    grad_alpha.store(channel, total[2]);
    if (grad_weight) grad_weight.store(channel, total[1]);
    if (grad_bias) grad_bias.store(channel, total[0]);
}

// Training: dx = direct + rstd weight (dt - mean(dt) - u mean(dt u)), as in batch norm; means over the valid rows.
template <typename T, int kWidth>
__global__ void dice_gradient_x(Global<const T> x, Global<const T> grad_y, Global<const bool> mask, int64_t rows,
                                Channels channels, DicePlan plan, Global<const float> sums, Global<const int64_t> count,
                                Global<T> grad_x) {
    const Share share(rows, plan, kWidth);
    if (share.first >= channels.count) return;
    const float part = count[0] > 0 ? 1.0f / float(count[0]) : 0.0f;
    float mean_dt[kWidth], mean_dt_u[kWidth];
    for (int i = 0; i < kWidth; ++i) {
        mean_dt[i] = sums[share.first + i] * part;
        mean_dt_u[i] = sums[channels.count + share.first + i] * part;
    }
    for_gradients<T, kWidth>(share, x, grad_y, mask, channels, grad_x,
                             [&](int i, const Channel& c, const DiceGradient& d) {
                                 return d.direct + c.rstd * c.weight * (d.dt - mean_dt[i] - d.u * mean_dt_u[i]);
                             });
}

// The call's arrays as kernels take them.
template <typename T>
struct Arrays {
    const Dice& call;
    int64_t size = call.rows * call.channels;

    Global<const T> in(const void* data) const { return {static_cast<const T*>(data), size}; }
    Global<T> out(void* data) const { return {static_cast<T*>(data), size}; }
    Global<const bool> mask() const { return {call.mask, call.rows}; }
    Global<float> per_channel(float* data) const { return {data, call.channels}; }
    Channels channels() const {
        const auto array = [&](const float* data) { return Global<const float>(data, call.channels); };
        return {call.channels,   array(call.alpha), array(call.weight), array(call.bias), array(call.mean),
                array(call.var), call.eps};
    }
};

// body(zero of T, width, plan, grid over chunks and stripes)
template <typename Body>
void with_plan(const Dice& call, std::initializer_list<const void*> rows, const Body& body) {
    with_dtype(call.dtype, [&](auto zero) {
        with_width(call.channels, aligned_for<4, decltype(zero)>(rows), [&](auto width) {
            const DicePlan plan = plan_dice(call.rows, call.channels, width());
            body(zero, width, plan, Grid{plan.chunks, plan.stripes});
        });
    });
}

// An array in the workspace, to write and to read.
template <typename T>
Global<T> carved_array(const Dice& call, int64_t offset, int64_t size) {
    return {carved<T>(call.workspace, offset), size};
}

}  // namespace

int64_t dice_workspace(int64_t rows, int64_t channels) { return plan_dice(rows, channels, 1).bytes; }

void dice_forward(const Dice& call, Stream stream) {
    with_plan(call, {call.x, call.y}, [&](auto zero, auto width, const DicePlan& plan, Grid grid) {
        using T = decltype(zero);
        const Arrays<T> arrays{call};
        const Global<int64_t> count(call.count, 1);
        if (call.training) {
            const int64_t partials_size = plan.chunks * 3 * call.channels;
            const auto partials = carved_array<float>(call, plan.partials, partials_size);
            const auto row_counts = carved_array<float>(call, plan.row_counts, plan.chunks);
            const size_t shared = size_t(kDiceThreads / plan.lanes + 2 * kDiceThreads * width()) * 4;
            launch("dice_statistics", dice_statistics<T, width()>, grid, kDiceThreads, shared, stream,
                   arrays.in(call.x), arrays.mask(), call.rows, call.channels, plan, partials, row_counts);
            launch("dice_join_statistics", dice_join_statistics, Grid{call.channels}, 32, 0, stream,
                   carved_array<const float>(call, plan.partials, partials_size),
                   carved_array<const float>(call, plan.row_counts, plan.chunks), plan.chunks, call.channels,
                   arrays.per_channel(call.mean), arrays.per_channel(call.var), count);
        } else {
            launch("dice_count", dice_count, Grid{1}, kScanThreads, kScanThreads / 32 * sizeof(int64_t), stream,
                   arrays.mask(), call.rows, count);
        }
        launch("dice_apply", dice_apply<T, width()>, grid, kDiceThreads, 0, stream, arrays.in(call.x), arrays.mask(),
               call.rows, arrays.channels(), plan, arrays.out(call.y));
    });
}

void dice_backward(const Dice& call, Stream stream) {
    with_plan(call, {call.x, call.grad_y, call.grad_x}, [&](auto zero, auto width, const DicePlan& plan, Grid grid) {
        using T = decltype(zero);
        const Arrays<T> arrays{call};
        const int64_t partials_size = plan.chunks * 3 * call.channels;
        const auto partials = carved_array<float>(call, plan.partials, partials_size);
        const auto sums = carved_array<float>(call, plan.sums, 3 * call.channels);
        launch("dice_gradient_sums", dice_gradient_sums<T, width()>, grid, kDiceThreads,
               size_t(3 * kDiceThreads * width()) * 4, stream, arrays.in(call.x), arrays.in(call.grad_y), arrays.mask(),
               call.rows, arrays.channels(), plan, arrays.out(call.training ? nullptr : call.grad_x), partials);
        launch("dice_join_sums", dice_join_sums, Grid{call.channels}, 32, 0, stream,
               carved_array<const float>(call, plan.partials, partials_size), plan.chunks, call.channels, sums,
               arrays.per_channel(call.grad_alpha), arrays.per_channel(call.grad_weight),
               arrays.per_channel(call.grad_bias));
        if (!call.training) return;
        launch("dice_count", dice_count, Grid{1}, kScanThreads, kScanThreads / 32 * sizeof(int64_t), stream,
               arrays.mask(), call.rows, Global<int64_t>(call.count, 1));
        launch("dice_gradient_x", dice_gradient_x<T, width()>, grid, kDiceThreads, 0, stream, arrays.in(call.x),
               arrays.in(call.grad_y), arrays.mask(), call.rows, arrays.channels(), plan,
               carved_array<const float>(call, plan.sums, 3 * call.channels), Global<const int64_t>(call.count, 1),
               arrays.out(call.grad_x));
    });
}

}  // namespace din_kernels::cuda
