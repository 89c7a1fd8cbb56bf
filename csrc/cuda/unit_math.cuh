// Products of a warp's 16 rows with a weight matrix: 16 x 8 tiles of fp32 sums, spread over the lanes as mma.sync has
// it (register r of a lane: row lane / 4 + 8 (r / 2), column 2 (lane % 4) + r % 2), also where FMA computes them.
//
// Weights are packed once per call in the order in which lanes read them, so that they need no shared memory: a warp
// reads 256 contiguous bytes per tile and step, from L1 after its first tile.
#pragma once

#include "accessors.cuh"

namespace din_kernels::cuda {

// Output columns that a warp keeps in registers: 5 tiles, so that widths of 40 and 80 leave none idle.
constexpr int kTiles = 5;
using Sums = float[kTiles][4];

// The two sides of a product over the rows of a tile, as for the gradient of a weight: left [rows, n] and right
// [rows, columns], of which 16 of n and kTiles * 8 columns from `n` and `column` on are multiplied.
template <typename S>
struct RowProduct {
    Shared<S> left, right;
    int left_stride, n, n_end;  // beyond n_end and column_end come zeros
    int right_stride, column, column_end;

    __device__ S left_at(int row, int of) const { return n + of < n_end ? left[row * left_stride + n + of] : S{}; }
    __device__ S right_at(int row, int of) const {
        return column + of < column_end ? right[row * right_stride + column + of] : S{};
    }
};

// word(): the words of a packed matrix from value(k, column). position(): where an element stands in it, counted in
// elements of Storage; rounded(): as which value.
template <typename S>
struct Mma {
    using Storage = S;
    static constexpr int kDepth = 16;  // k per step

    static constexpr int64_t words(int64_t steps) { return 64 * steps; }

    template <typename Value>
    __device__ static uint32_t word(int64_t at, int64_t steps, const Value& value) {
        const int r = int(at % 2), lane = int(at / 2 % 32);
        const int64_t step = at / 64 % steps, tile = at / 64 / steps;
        const int64_t k = step * 16 + 2 * (lane % 4) + 8 * r, column = tile * 8 + lane / 4;
        const S low = narrow<S>(value(k, column)), high = narrow<S>(value(k + 1, column));
        return uint32_t(low.bits) | uint32_t(high.bits) << 16;
    }
    __device__ static int64_t position(int64_t k, int64_t column, int64_t steps) {
        const int64_t lane = column % 8 * 4 + k % 8 / 2;
        return (((column / 8) * steps + k / 16) * 64 + 2 * lane + k % 16 / 8) * 2 + k % 2;
    }
    __device__ static S rounded(float value) { return narrow<S>(value); }

    // sums[t] += rows [16, 16 steps] of `rows` (from element `first`, `stride` apart) times tile first_tile + t.
    template <typename Packed>
    __device__ static void multiply(Sums& sums, const Shared<S>& rows, int first, int stride, int steps,
                                    const Packed& packed, int first_tile, int tiles) {
        const int lane = int(threadIdx.x) % 32;
        const int row = first + (lane % 16) * stride + lane / 16 * 8;
        for (int step = 0; step < steps; ++step) {
            uint32_t a[4];
            ptx::ldmatrix_x4(a, rows.address_16(row + 16 * step));
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                if (first_tile + t >= tiles) break;
                const auto b = packed.template load<2>((int64_t(first_tile + t) * steps + step) * 64 + 2 * lane);
                const uint32_t registers[2] = {b.at[0], b.at[1]};
                mma(sums[t], a, registers);
            }
        }
    }

    // sums[t] += left^T right over `rows` rows. Elements come one by one: they lie across the rows of the tiles.
    __device__ static void multiply_rows(Sums& sums, const RowProduct<S>& product, int rows) {
        const int lane = int(threadIdx.x) % 32, tiles = (product.column_end - product.column + 7) / 8;
        const auto pair = [](S low, S high) { return uint32_t(low.bits) | uint32_t(high.bits) << 16; };
        for (int first = 2 * (lane % 4); first < rows; first += 16) {
            uint32_t a[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int row = first + 8 * (r / 2), n = lane / 4 + 8 * (r % 2);
                a[r] = pair(product.left_at(row, n), product.left_at(row + 1, n));
            }
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                if (t >= tiles) break;
                const int column = 8 * t + lane / 4;
                const uint32_t b[2] = {pair(product.right_at(first, column), product.right_at(first + 1, column)),
                                       pair(product.right_at(first + 8, column), product.right_at(first + 9, column))};
                mma(sums[t], a, b);
            }
        }
    }

    __device__ static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        if constexpr (std::is_same_v<S, Bf16>)
            ptx::mma_bf16(d, a, b);
        else
            ptx::mma_fp16(d, a, b);
    }
};

struct Tf32 {
    using Storage = float;
    static constexpr int kDepth = 8;

    static constexpr int64_t words(int64_t steps) { return 64 * steps; }

    template <typename Value>
    __device__ static uint32_t word(int64_t at, int64_t steps, const Value& value) {
        const int r = int(at % 2), lane = int(at / 2 % 32);
        const int64_t step = at / 64 % steps, tile = at / 64 / steps;
        return ptx::tf32_from_float(value(step * 8 + lane % 4 + 4 * r, tile * 8 + lane / 4));
    }
    __device__ static int64_t position(int64_t k, int64_t column, int64_t steps) {
        return ((column / 8) * steps + k / 8) * 64 + 2 * (column % 8 * 4 + k % 4) + k % 8 / 4;
    }
    __device__ static float rounded(float value) { return ptx::float_from_bits(ptx::tf32_from_float(value)); }

    template <typename Packed>
    __device__ static void multiply(Sums& sums, const Shared<float>& rows, int first, int stride, int steps,
                                    const Packed& packed, int first_tile, int tiles) {
        const int lane = int(threadIdx.x) % 32;
        const int row = first + (lane % 16) * stride + lane / 16 * 4;
        for (int step = 0; step < steps; ++step) {
            uint32_t a[4];
            ptx::ldmatrix_x4(a, rows.address_16(row + 8 * step));
            for (uint32_t& element : a) element = ptx::tf32_from_float(ptx::float_from_bits(element));
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                if (first_tile + t >= tiles) break;
                const auto b = packed.template load<2>((int64_t(first_tile + t) * steps + step) * 64 + 2 * lane);
                const uint32_t registers[2] = {b.at[0], b.at[1]};
                ptx::mma_tf32(sums[t], a, registers);
            }
        }
    }

    __device__ static void multiply_rows(Sums& sums, const RowProduct<float>& product, int rows) {
        const int lane = int(threadIdx.x) % 32, tiles = (product.column_end - product.column + 7) / 8;
        for (int first = lane % 4; first < rows; first += 8) {
            uint32_t a[4];
#pragma unroll
            for (int r = 0; r < 4; ++r)
                a[r] = ptx::tf32_from_float(product.left_at(first + 4 * (r / 2), lane / 4 + 8 * (r % 2)));
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                if (t >= tiles) break;
                const int column = 8 * t + lane / 4;
                const uint32_t b[2] = {ptx::tf32_from_float(product.right_at(first, column)),
                                       ptx::tf32_from_float(product.right_at(first + 4, column))};
                ptx::mma_tf32(sums[t], a, b);
            }
        }
    }
};

struct Fma {
    using Storage = float;
    static constexpr int kDepth = 4;

    static constexpr int64_t words(int64_t steps) { return 32 * steps; }

    template <typename Value>
    __device__ static uint32_t word(int64_t at, int64_t steps, const Value& value) {
        const int64_t k = at / 8 % (4 * steps), tile = at / 32 / steps;
        return ptx::bits_from_float(value(k, tile * 8 + at % 8));
    }
    __device__ static int64_t position(int64_t k, int64_t column, int64_t steps) {
        return column / 8 * steps * 32 + k * 8 + column % 8;
    }
    __device__ static float rounded(float value) { return value; }

    template <typename Packed>
    __device__ static void multiply(Sums& sums, const Shared<float>& rows, int first, int stride, int steps,
                                    const Packed& packed, int first_tile, int tiles) {
        const int lane = int(threadIdx.x) % 32;
        const int row = first + lane / 4 * stride;
        for (int step = 0; step < steps; ++step) {
            const auto upper = rows.template load<4>(row + 4 * step);
            const auto lower = rows.template load<4>(row + 8 * stride + 4 * step);
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                if (first_tile + t >= tiles) break;
                const int64_t at = (int64_t(first_tile + t) * steps + step) * 32 + 2 * (lane % 4);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const auto b = packed.template load<2>(at + 8 * k);
                    for (int c = 0; c < 2; ++c) {
                        const float weight = ptx::float_from_bits(b.at[c]);
                        sums[t][c] = fmaf(upper.at[k], weight, sums[t][c]);
                        sums[t][2 + c] = fmaf(lower.at[k], weight, sums[t][2 + c]);
                    }
                }
            }
        }
    }

    __device__ static void multiply_rows(Sums& sums, const RowProduct<float>& product, int rows) {
        const int lane = int(threadIdx.x) % 32, tiles = (product.column_end - product.column + 7) / 8;
        for (int row = 0; row < rows; ++row) {
            const float upper = product.left_at(row, lane / 4), lower = product.left_at(row, lane / 4 + 8);
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                if (t >= tiles) break;
                for (int c = 0; c < 2; ++c) {
                    const float right = product.right_at(row, 8 * t + 2 * (lane % 4) + c);
                    sums[t][c] = fmaf(upper, right, sums[t][c]);
                    sums[t][2 + c] = fmaf(lower, right, sums[t][2 + c]);
                }
            }
        }
    }
};

}  // namespace din_kernels::cuda
