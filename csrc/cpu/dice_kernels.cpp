// Statistics, values and gradients of Dice for a block of rows. Compiled once per ISA; exports one table.
#include "activation.h"
#include "dice_call.h"
#include "storage.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// kVectors vectors of columns. Where C is no multiple of the lanes the last vector begins earlier and overlaps the one
// before, whose columns it computes once more; where C is less than one vector (kPartial) it is filled up with zeros.
template <typename S, int kVectors, bool kPartial>
struct Columns {
    using T = Wide<S>;
    static constexpr int kCount = kVectors;
    int64_t channels, first;

    int64_t at(int v) const {
        const int64_t start = first + v * kLanes<T>;
        return !kPartial && start + kLanes<T> > channels ? channels - kLanes<T> : start;
    }
    template <typename E>
    Vec<T> read(const E* row, int v) const {
        if constexpr (kPartial) {
            E lanes[kLanes<T>] = {};
            memcpy(lanes, row, size_t(channels) * sizeof(E));
            return load_wide(lanes);
        } else {
            return load_wide(row + at(v));
        }
    }
    template <typename E>
    void write(E* row, int v, Vec<T> value) const {
        if constexpr (kPartial) {
            E lanes[kLanes<T>];
            store_narrow(lanes, value);
            memcpy(row, lanes, size_t(channels) * sizeof(E));
        } else {
            store_narrow(row + at(v), value);
        }
    }
    Dice<T> policy(const DiceCall<S>& call, int v) const {
        return {read(call.args->alpha, v), read(call.args->mean, v), read(call.scale, v), read(call.bias, v)};
    }
};

// body(columns) until all channels are covered, by at most kMost vectors at once and as evenly as that goes.
template <typename S, int kMost, typename Body>
inline void for_columns(int64_t channels, const Body& body) {
    constexpr int64_t kLane = kLanes<Wide<S>>;
    if (channels < kLane) return body(Columns<S, 1, true>{channels, 0});
    int64_t vectors = (channels + kLane - 1) / kLane;
    int64_t groups = (vectors + kMost - 1) / kMost;
    for (int64_t column = 0; vectors > 0; --groups) {
        const int64_t size = (vectors + groups - 1) / groups;
        if (size == 1) body(Columns<S, 1, false>{channels, column});
        if (size == 2) body(Columns<S, 2, false>{channels, column});
        if constexpr (kMost > 2) {
            if (size == 3) body(Columns<S, 3, false>{channels, column});
            if (size == 4) body(Columns<S, 4, false>{channels, column});
        }
        column += size * kLane, vectors -= size;
    }
}

template <typename S>
void statistics(const DiceCall<S>& call, int64_t block, int64_t count) {
    using T = Wide<S>;
    const int64_t channels = call.args->channels;
    T* out = call.partials + block * kStatistics * channels;
    // Two looks at the block, the second from the cache: the mean first, so that a large one cancels nothing. What its
    // rounding left, the sum of the deviations, is kept as well.
    for_columns<S, 4>(channels, [&](auto columns) {
        constexpr int kVectors = decltype(columns)::kCount;
        Vec<T> mean[kVectors] = {}, rest[kVectors] = {}, squares[kVectors] = {};
        for (int64_t i = call.first(block); i < call.last(block); ++i) {
            if (!call.valid(i)) continue;
            for (int v = 0; v < kVectors; ++v) mean[v] += columns.read(call.args->x + i * channels, v);
        }
        for (int v = 0; v < kVectors; ++v) mean[v] /= T(count > 0 ? count : 1);
        for (int64_t i = call.first(block); i < call.last(block); ++i) {
            if (!call.valid(i)) continue;
            for (int v = 0; v < kVectors; ++v) {
                const Vec<T> d = columns.read(call.args->x + i * channels, v) - mean[v];
                rest[v] += d;
                squares[v] += d * d;
            }
        }
        for (int v = 0; v < kVectors; ++v) {
            columns.write(out, v, mean[v]);
            columns.write(out + channels, v, rest[v]);
            columns.write(out + 2 * channels, v, squares[v]);
        }
    });
}

template <typename S>
void forward(const DiceCall<S>& call, int64_t block) {
    const int64_t channels = call.args->channels;
    for_columns<S, 2>(channels, [&](auto columns) {
        constexpr int kVectors = decltype(columns)::kCount;
        Dice<Wide<S>> dice[kVectors];
        for (int v = 0; v < kVectors; ++v) dice[v] = columns.policy(call, v);
        for (int64_t i = call.first(block); i < call.last(block); ++i) {
            const bool valid = call.valid(i);
            for (int v = 0; v < kVectors; ++v)
                columns.write(call.y + i * channels, v,
                              valid ? dice[v].value(columns.read(call.args->x + i * channels, v)) : Vec<Wide<S>>{});
        }
    });
}

template <typename S>
void grad_sums(const DiceCall<S>& call, int64_t block) {
    using T = Wide<S>;
    const int64_t channels = call.args->channels;
    T* out = call.partials + block * kGradSums * channels;
    for_columns<S, 2>(channels, [&](auto columns) {
        constexpr int kVectors = decltype(columns)::kCount;
        Dice<T> dice[kVectors];
        Vec<T> alpha[kVectors] = {}, u[kVectors] = {}, ud[kVectors] = {};
        for (int v = 0; v < kVectors; ++v) dice[v] = columns.policy(call, v);
        for (int64_t i = call.first(block); i < call.last(block); ++i) {
            if (!call.valid(i)) continue;
            for (int v = 0; v < kVectors; ++v) {
                const Vec<T> s = columns.read(call.args->x + i * channels, v);
                const Vec<T> through = columns.read(call.grads->y + i * channels, v) * s;  // dy s
                const Vec<T> left = through * (1 - dice[v].p(s));                          // dy s (1 - p) = dL/dalpha
                const Vec<T> uv = left * dice[v].p(s);  // u = (1 - alpha) dy s p (1 - p); (1 - alpha) at the end
                alpha[v] += left;
                u[v] += uv;
                ud[v] += uv * (s - dice[v].mean);
            }
        }
        for (int v = 0; v < kVectors; ++v) {
            columns.write(out, v, alpha[v]);
            columns.write(out + channels, v, u[v] * (1 - dice[v].alpha));
            columns.write(out + 2 * channels, v, ud[v] * (1 - dice[v].alpha));
        }
    });
}

// dx = dy (alpha + (1 - alpha) p) + r weight (u - mean_u - (s - mean) mean_ud)
template <typename S>
void backward(const DiceCall<S>& call, int64_t block) {
    using T = Wide<S>;
    const int64_t channels = call.args->channels;
    for_columns<S, 2>(channels, [&](auto columns) {
        constexpr int kVectors = decltype(columns)::kCount;
        Dice<T> dice[kVectors];
        Vec<T> mean_u[kVectors], mean_ud[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            dice[v] = columns.policy(call, v);
            mean_u[v] = columns.read(call.mean_u, v), mean_ud[v] = columns.read(call.mean_ud, v);
        }
        for (int64_t i = call.first(block); i < call.last(block); ++i) {
            const bool valid = call.valid(i);
            for (int v = 0; v < kVectors; ++v) {
                Vec<T> dx{};
                if (valid) {
                    const Vec<T> s = columns.read(call.args->x + i * channels, v);
                    const Vec<T> dy = columns.read(call.grads->y + i * channels, v);
                    const Vec<T> p = dice[v].p(s), gated = (1 - dice[v].alpha) * p;
                    const Vec<T> u = dy * s * gated * (1 - p);
                    dx = dy * (dice[v].alpha + gated) +
                         dice[v].inverse * (u - mean_u[v] - (s - dice[v].mean) * mean_ud[v]);
                }
                columns.write(call.grads->x + i * channels, v, dx);
            }
        }
    });
}

template <typename S>
constexpr DiceKernels<S> kKernels = {statistics<S>, forward<S>, grad_sums<S>, backward<S>};

}  // namespace

extern const KernelTable<DiceKernels> dice_kernels = {kKernels<float>, kKernels<double>, kKernels<BFloat16>,
                                                      kKernels<Float16>};

}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
