// Statistics, values and gradients of Dice for a block of rows. Compiled once per ISA; exports one table.
#include "common/activation.h"
#include "common/storage.h"
#include "dice/call.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// A vector of columns from `at` on. All but the last of a row are full.
template <bool kFull>
struct Columns {
    int64_t at, count;

    template <typename S>
    Vec<Wide<S>> read(const S* row) const {
        if constexpr (kFull) return load_wide(row + at);
        return load_first(row + at, count);
    }
    template <bool kStream = false, typename S>
    void write(S* row, Vec<Wide<S>> value) const {
        if constexpr (kFull && kStream) return stream(row + at, value);
        if constexpr (kFull) return store_narrow(row + at, value);
        store_first(row + at, value, count);
    }
};

template <typename T, typename Body>
inline void for_columns(int64_t channels, const Body& body) {
    int64_t at = 0;
    for (; at + kLanes<T> <= channels; at += kLanes<T>) body(Columns<true>{at, kLanes<T>});
    if (at < channels) body(Columns<false>{at, channels - at});
}

// body(rows, how many) for the first `most` valid rows of a block, kRows at once: what belongs to a channel is loaded
// and stored once for all of them, and rows are read from end to end, as the prefetcher expects.
constexpr int kRows = 4;

template <typename S, typename Body>
inline void for_valid_rows(const DiceCall<S>& call, int64_t block, int64_t most, const Body& body) {
    int64_t rows[kRows];
    int waiting = 0;
    for (int64_t i = call.first(block); i < call.last(block) && most > 0; ++i) {
        if (!call.valid(i)) continue;
        rows[waiting++] = i, --most;
        if (waiting < kRows) continue;
        body(rows, std::integral_constant<int, kRows>{});
        waiting = 0;
    }
    for (int r = 0; r < waiting; ++r) body(rows + r, std::integral_constant<int, 1>{});
}
constexpr int64_t kAll = INT64_MAX;

template <typename S>
void clear_others(const DiceCall<S>& call, int64_t block, S* out) {
    const int64_t channels = call.args.channels;
    for (int64_t i = call.first(block); i < call.last(block); ++i)
        if (!call.valid(i)) memset(out + i * channels, 0, size_t(channels) * sizeof(S));
}

template <typename T, typename S>
inline Dice<T> policy(const DiceCall<S>& call, int64_t at) {
    return {load(call.alpha + at), load(call.mean + at), load(call.scale + at), load(call.bias + at)};
}

template <typename S>
void statistics(const DiceCall<S>& call, int64_t block) {
    using T = Wide<S>;
    const int64_t channels = call.args.channels;
    T* const m = call.partials + block * kStatistics * call.padded;
    T *const rest = m + call.padded, *const squares = rest + call.padded;
    memset(m, 0, size_t(kStatistics * call.padded) * sizeof(T));
    // One look at the block: around the mean of its first rows, which is near enough to that of all that a large mean
    // cancels nothing.
    constexpr int64_t kFirst = 16;
    T found = 0;
    for_valid_rows(call, block, kFirst, [&](const int64_t* rows, auto count) {
        found += T(count);
        for_columns<T>(channels, [&](auto columns) {
            Vec<T> sum = load(m + columns.at);
            for (int r = 0; r < count; ++r) sum += columns.read(call.x + rows[r] * channels);
            store(m + columns.at, sum);
        });
    });
    for (int64_t c = 0; c < channels; ++c) m[c] /= found > 0 ? found : 1;
    for_valid_rows(call, block, kAll, [&](const int64_t* rows, auto count) {
        for_columns<T>(channels, [&](auto columns) {
            const Vec<T> around = load(m + columns.at);
            Vec<T> sum{}, square{};
            for (int r = 0; r < count; ++r) {
                const Vec<T> d = columns.read(call.x + rows[r] * channels) - around;
                sum += d;
                square += d * d;
            }
            store(rest + columns.at, load(rest + columns.at) + sum);
            store(squares + columns.at, load(squares + columns.at) + square);
        });
    });
}

template <typename S, bool kStream>
void forward(const DiceCall<S>& call, int64_t block) {
    using T = Wide<S>;
    const int64_t channels = call.args.channels;
    clear_others(call, block, call.y);
    for_valid_rows(call, block, kAll, [&](const int64_t* rows, auto count) {
        for_columns<T>(channels, [&](auto columns) {
            const Dice<T> dice = policy<T>(call, columns.at);
            for (int r = 0; r < count; ++r)
                columns.template write<kStream>(call.y + rows[r] * channels,
                                                dice.value(columns.read(call.x + rows[r] * channels)));
        });
    });
    if (kStream) streamed();
}

// dx = dy (alpha + (1 - alpha) p) + r weight (u - mean_u - (s - mean) mean_ud),  u = (1 - alpha) dy s p (1 - p)
//
// kSums: adds up the sums, and dx, if it is written, is without mean_u and mean_ud, which need all of them; else dx is
// whole.
template <typename S, bool kSums, bool kWrites, bool kStream>
void backward(const DiceCall<S>& call, int64_t block) {
    using T = Wide<S>;
    const int64_t channels = call.args.channels;
    T* const alpha = call.partials + block * kGradSums * call.padded;
    T *const u = alpha + call.padded, *const ud = u + call.padded;
    if (kSums) memset(alpha, 0, size_t(kGradSums * call.padded) * sizeof(T));
    if (kWrites) clear_others(call, block, call.grad_x);
    for_valid_rows(call, block, kAll, [&](const int64_t* rows, auto count) {
        for_columns<T>(channels, [&](auto columns) {
            const Dice<T> dice = policy<T>(call, columns.at);
            const Vec<T> gated = 1 - dice.alpha;
            const Vec<T> mean_u = load(call.mean_u + columns.at), mean_ud = load(call.mean_ud + columns.at);
            Vec<T> alpha_sum{}, u_sum{}, ud_sum{};
            for (int r = 0; r < count; ++r) {
                const Vec<T> s = columns.read(call.x + rows[r] * channels);
                const Vec<T> dy = columns.read(call.grad_y + rows[r] * channels);
                const Vec<T> p = dice.p(s), left = dy * s * (1 - p);  // dL/dalpha
                const Vec<T> through = gated * (left * p);            // dL/dz
                if constexpr (kSums) {
                    alpha_sum += left;
                    u_sum += through;
                    ud_sum += through * (s - dice.mean);
                }
                if constexpr (kWrites) {
                    const Vec<T> centered = kSums ? through : through - mean_u - (s - dice.mean) * mean_ud;
                    columns.template write<kStream>(call.grad_x + rows[r] * channels,
                                                    dy * (dice.alpha + gated * p) + dice.inverse * centered);
                }
            }
            if constexpr (kSums) {
                store(alpha + columns.at, load(alpha + columns.at) + alpha_sum);
                store(u + columns.at, load(u + columns.at) + u_sum);
                store(ud + columns.at, load(ud + columns.at) + ud_sum);
            }
        });
    });
    if (kStream) streamed();
}

// What backward<S, true, true> left out of dx, without another sigmoid and without dy.
template <typename S>
void backward_rest(const DiceCall<S>& call, int64_t block) {
    using T = Wide<S>;
    const int64_t channels = call.args.channels;
    for_valid_rows(call, block, kAll, [&](const int64_t* rows, auto count) {
        for_columns<T>(channels, [&](auto columns) {
            const Dice<T> dice = policy<T>(call, columns.at);
            const Vec<T> mean_u = load(call.mean_u + columns.at), mean_ud = load(call.mean_ud + columns.at);
            for (int r = 0; r < count; ++r) {
                S* const dx = call.grad_x + rows[r] * channels;
                const Vec<T> s = columns.read(call.x + rows[r] * channels);
                columns.write(dx, columns.read(dx) - dice.inverse * (mean_u + (s - dice.mean) * mean_ud));
            }
        });
    });
}

// Where kStream, rows begin on cache lines, so that every vector of columns is full. 16 bits are not streamed.
//
// 16 bits cannot hold dx between two passes without rounding it twice: it is computed once more there.
template <typename S>
constexpr bool kHolds = std::is_same_v<S, Wide<S>>;
template <typename S>
constexpr DiceKernels<S> kKernels = {statistics<S>,
                                     {forward<S, false>, forward<S, kHolds<S>>},
                                     {backward<S, true, true, false>, backward<S, true, true, kHolds<S>>},
                                     {backward<S, true, kHolds<S>, false>, backward<S, true, kHolds<S>, kHolds<S>>},
                                     kHolds<S> ? backward_rest<S> : backward<S, false, true, false>};

}  // namespace

extern const KernelTable<DiceKernels> dice_kernels = {kKernels<float>, kKernels<double>, kKernels<BFloat16>,
                                                      kKernels<Float16>};

}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
