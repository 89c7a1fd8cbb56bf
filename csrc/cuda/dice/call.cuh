// Forward and backward of dice share the parameters of a channel, a thread's share of the rows and channels, and the
// call's arrays as kernels take them.
#pragma once

#include "common/carved.cuh"
#include "common/dispatch.h"
#include "common/launch.cuh"
#include "dice/plan.h"
#include "din_kernels/cuda/dice.h"

namespace din_kernels::cuda {

struct DiceChannels {
    int64_t count;                            // C
    Global<const float> alpha, weight, bias;  // [C]; weight and bias or null
    Global<const float> mean, var;            // [C]
    float eps;
};

struct DiceChannel {
    float alpha, weight, bias, mean, rstd;

    // u = (x - mean) rstd, and t = weight u + bias, of which p = sigmoid(t).
    __device__ float normalized(float x) const { return (x - mean) * rstd; }
    __device__ float gate(float u) const { return weight * u + bias; }
};
__device__ inline DiceChannel channel_at(const DiceChannels& channels, int64_t at) {
    return {channels.alpha[at], channels.weight ? channels.weight[at] : 1.0f, channels.bias ? channels.bias[at] : 0.0f,
            channels.mean[at], 1.0f / sqrtf(channels.var[at] + channels.eps)};
}

// A thread's share of the block's chunk and stripe, pictured in plan.h: `width` channels from `first` on, and the rows
// row, row + groups, ... below end.
struct DiceShare {
    int64_t first, row, end;
    int lane, group, groups;

    __device__ DiceShare(int64_t rows, const DicePlan& plan, int width)
        : first((int64_t(blockIdx.y) * plan.lanes + int(threadIdx.x) % plan.lanes) * width),
          lane(int(threadIdx.x) % plan.lanes),
          group(int(threadIdx.x) / plan.lanes),
          groups(kDiceThreads / plan.lanes) {
        const int64_t begin = int64_t(blockIdx.x) * plan.rows_per_chunk;
        end = begin + plan.rows_per_chunk < rows ? begin + plan.rows_per_chunk : rows;
        row = begin + group;
    }
};

template <typename T>
struct DiceArrays {
    const Dice& call;
    int64_t size = call.rows * call.channels;

    Global<const T> in(const void* data) const { return {static_cast<const T*>(data), size}; }
    Global<T> out(void* data) const { return {static_cast<T*>(data), size}; }
    Global<const bool> mask() const { return {call.mask, call.rows}; }
    Global<float> per_channel(void* data) const { return {fp32(data), call.channels}; }
    DiceChannels channels() const {
        const auto array = [&](const void* data) { return Global<const float>(fp32(data), call.channels); };
        return {call.channels,    array(call.alpha), array(call.weight), array(call.bias),
                array(call.mean), array(call.var),   float(call.eps)};
    }
};

// Calls body(zero of T, width, plan, grid over chunks and stripes).
template <typename Body>
void with_dice_plan(const Dice& call, std::initializer_list<const void*> rows, const Body& body) {
    with_dtype(call.dtype, [&](auto zero) {
        with_width(call.channels, aligned_for<4, decltype(zero)>(rows), [&](auto width) {
            const DicePlan plan = plan_dice(call.rows, call.channels, width());
            body(zero, width, plan, Grid{plan.chunks, plan.stripes});
        });
    });
}

// Writes the number of valid rows to call.count, where no statistics are taken.
void count_valid_rows(const Dice& call, Stream stream);

}  // namespace din_kernels::cuda
