// Backward of dice. In training one pass takes the sums that flow through the statistics and a second one writes
// grad_x; in evaluation one pass does both. All sums are added in a fixed order.
#include "common/activation.cuh"
#include "common/block_scan.cuh"
#include "dice/call.cuh"

namespace din_kernels::cuda {
namespace {

// The gradients of one element, with u of the statistics.
struct DiceGradient {
    float direct, dt, dalpha, u;
};
__device__ inline DiceGradient dice_gradient(const DiceChannel& c, float x, float g) {
    // 1 - p comes from the exponential, not from a subtraction: near p = 1 nothing would be left of it.
    const float u = c.normalized(x), t = c.gate(u);
    const float small = expf(-fabsf(t)), larger = 1.0f / (1.0f + small), smaller = small * larger;
    const auto of = activations::Dice<false>::gated_gradient(
        x, g, c.alpha, {t >= 0.0f ? larger : smaller, t >= 0.0f ? smaller : larger});
    return {of.direct, of.dt, of.dalpha, u};
}

// Calls gradient(i, channel, DiceGradient), which returns dx, for channel first + i of the share in every valid row.
// The rest of grad_x is zeros; grad_x may be null.
template <typename T, int kWidth, typename Gradient>
__device__ void for_gradients(const DiceShare& share, const Global<const T>& x, const Global<const T>& grad_y,
                              const Global<const bool>& mask, const DiceChannels& channels, const Global<T>& grad_x,
                              const Gradient& gradient) {
    DiceChannel channel[kWidth];
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

// partials [chunks, 3, C] = sums of dt, dt u and dalpha. In evaluation grad_x needs no sums and is written as well; in
// training it is null:
//   dx = direct + rstd weight dt
template <typename T, int kWidth>
__global__ void dice_gradient_sums(Global<const T> x, Global<const T> grad_y, Global<const bool> mask, int64_t rows,
                                   DiceChannels channels, DicePlan plan, Global<T> grad_x, Global<float> partials) {
    const DiceShare share(rows, plan, kWidth);
    const int columns = plan.lanes * kWidth;
    const Shared<float> scratch(0, 3 * share.groups * columns);
    // The thread's rows.
    float sums[3][kWidth] = {};
    if (share.first < channels.count)
        for_gradients<T, kWidth>(share, x, grad_y, mask, channels, grad_x,
                                 [&](int i, const DiceChannel& c, const DiceGradient& d) {
                                     sums[0][i] += d.dt, sums[1][i] += d.dt * d.u, sums[2][i] += d.dalpha;
                                     return d.direct + c.rstd * c.weight * d.dt;
                                 });
    for (int which = 0; which < 3; ++which)
        for (int i = 0; i < kWidth; ++i)
            scratch.store((which * share.groups + share.group) * columns + share.lane * kWidth + i, sums[which][i]);
    __syncthreads();
    // The groups of a column, in their order.
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

// A warp per channel adds the chunks up: to the gradients of alpha, weight and bias, and to the sums of dt and dt u,
// which grad_x needs.
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

// In training dx = direct + rstd weight (dt - mean(dt) - u mean(dt u)), as in batch norm, with means over the valid
// rows.
template <typename T, int kWidth>
__global__ void dice_gradient_x(Global<const T> x, Global<const T> grad_y, Global<const bool> mask, int64_t rows,
                                DiceChannels channels, DicePlan plan, Global<const float> sums,
                                Global<const int64_t> count, Global<T> grad_x) {
    const DiceShare share(rows, plan, kWidth);
    if (share.first >= channels.count) return;
    const float part = count[0] > 0 ? 1.0f / float(count[0]) : 0.0f;
    float mean_dt[kWidth], mean_dt_u[kWidth];
    for (int i = 0; i < kWidth; ++i) {
        mean_dt[i] = sums[share.first + i] * part;
        mean_dt_u[i] = sums[channels.count + share.first + i] * part;
    }
    for_gradients<T, kWidth>(share, x, grad_y, mask, channels, grad_x,
                             [&](int i, const DiceChannel& c, const DiceGradient& d) {
                                 return d.direct + c.rstd * c.weight * (d.dt - mean_dt[i] - d.u * mean_dt_u[i]);
                             });
}

}  // namespace

void dice_backward(const Dice& call, Stream stream) {
    with_dice_plan(call, {call.x, call.grad_y, call.grad_x},
                   [&](auto zero, auto width, const DicePlan& plan, Grid grid) {
                       using T = decltype(zero);
                       const DiceArrays<T> arrays{call};
                       const int64_t partials_size = plan.chunks * 3 * call.channels;
                       const auto partials = carved_array<float>(call.workspace, plan.partials, partials_size);
                       const auto sums = carved_array<float>(call.workspace, plan.sums, 3 * call.channels);
                       launch("dice_gradient_sums", dice_gradient_sums<T, width()>, grid, kDiceThreads,
                              size_t(3 * kDiceThreads * width()) * 4, stream, arrays.in(call.x), arrays.in(call.grad_y),
                              arrays.mask(), call.rows, arrays.channels(), plan,
                              arrays.out(call.training ? nullptr : call.grad_x), partials);
                       launch("dice_join_sums", dice_join_sums, Grid{call.channels}, 32, 0, stream,
                              carved_array<const float>(call.workspace, plan.partials, partials_size), plan.chunks,
                              call.channels, sums, arrays.per_channel(call.grad_alpha),
                              arrays.per_channel(call.grad_weight), arrays.per_channel(call.grad_bias));
                       if (!call.training) return;
                       count_valid_rows(call, stream);
                       launch("dice_gradient_x", dice_gradient_x<T, width()>, grid, kDiceThreads, 0, stream,
                              arrays.in(call.x), arrays.in(call.grad_y), arrays.mask(), call.rows, arrays.channels(),
                              plan, carved_array<const float>(call.workspace, plan.sums, 3 * call.channels),
                              Global<const int64_t>(call.count, 1), arrays.out(call.grad_x));
                   });
}

}  // namespace din_kernels::cuda
