// Products of a warp's 16 rows with a packed matrix, by four kinds of arithmetic that share one layout of the sums. A
// tile of sums is 16 x 8 and lies over the lanes as mma.sync has it, also where FMA computes it: lane 4 r + c holds
//
//            columns 2 c, 2 c + 1
//   row r         sums[0] sums[1]          r = lane / 4,  c = lane % 4
//   row r + 8     sums[2] sums[3]
//
//   lane of an element   | 0 0 1 1 2 2 3 3 |     row 0, and row 8
//                        | 4 4 5 5 6 6 7 7 |     row 1, and row 9
//                        |      ...        |
//                        | 28  ...      31 |     row 7, and row 15
#pragma once

#include <type_traits>

#include "common/accessors.cuh"
#include "local_activation/packed.cuh"

namespace din_kernels::cuda {

// The two sides of a product over the rows of a tile, as the gradient of a weight needs it: left [rows, n_end] and
// right [rows, column_end]. The 16 columns of left from `n` on are multiplied with some tiles of right from `column`
// on:
//
//              n .. n + 16                     column .. column + 8 kCount
//            +-------------+                 +-----------------------------+
//      rows  |    left     |  ^T   x   rows  |            right            |   =   16 x 8 kCount sums
//            +-------------+                 +-----------------------------+
//
// Sums beyond n_end and column_end mean nothing. Rows of 16-bit elements must be there up to the next multiple of 8.
template <typename S>
struct RowProduct {
    Shared<S> left, right;
    int left_stride, n, n_end;
    int right_stride, column, column_end;

    __device__ S left_at(int row, int of) const { return n + of < n_end ? left[row * left_stride + n + of] : S{}; }
    __device__ S right_at(int row, int of) const {
        return column + of < column_end ? right[row * right_stride + column + of] : S{};
    }
};

// sums[t] += left(step) times tile first_tile + t of a matrix with 64 words per tile and step; first_tile is the first
// of a group. A step's weights are on their way while those of the step before are multiplied.
template <int kCount, typename Packed, typename Left, typename Multiply>
__device__ void multiply_steps(Sums<kCount>& sums, int steps, const Packed& packed, int first_tile, const Left& left,
                               const Multiply& multiply) {
    struct Weights {
        Vector<uint32_t, 2> of[kCount];
    };
    const int64_t first = int64_t(first_tile) * steps * 64 + 2 * (int(threadIdx.x) % 32);
    const auto fetch = [&](int step) {
        Weights weights;
#pragma unroll
        for (int t = 0; t < kCount; ++t) weights.of[t] = packed.template load<2>(first + step * (kCount * 64) + t * 64);
        return weights;
    };
    const auto multiply_step = [&](int step, const Weights& weights) {
        uint32_t a[4];
        left(a, step);
#pragma unroll
        for (int t = 0; t < kCount; ++t) {
            const uint32_t b[2] = {weights.of[t].at[0], weights.of[t].at[1]};
            multiply(sums[t], a, b);
        }
    };
    Weights now = fetch(0);
#pragma unroll 2
    for (int step = 1; step < steps; ++step) {
        const Weights next = fetch(step);
        multiply_step(step - 1, now);
        now = next;
    }
    multiply_step(steps - 1, now);
}

// An arithmetic is a struct with
//   Storage                  the type of the elements
//   kDepth, kWords           rows of a matrix per step, and 32-bit words per tile and step
//   word(at, ...)            word `at` of a packed matrix whose elements are value(k, column)
//   position(k, column, ...) the place of an element in it, counted in elements of Storage
//   rounded(value)           the value that the product takes
//   multiply                 sums[t] += 16 rows x tile first_tile + t of a packed matrix
//   multiply_rows            sums[t] += left^T right over rows, see RowProduct
//
// bf16 and fp16 by mma.sync m16n8k16.
template <typename S>
struct Mma {
    using Storage = S;
    static constexpr int kDepth = 16;
    static constexpr int kWords = 64;

    template <typename Value>
    __device__ static uint32_t word(int64_t at, const PackedOrder& order, const Value& value) {
        const int r = int(at % 2), lane = int(at / 2 % 32);
        const int64_t k = order.step(at / 64) * 16 + 2 * (lane % 4) + 8 * r,
                      column = order.tile(at / 64) * 8 + lane / 4;
        const S low = narrow<S>(value(k, column)), high = narrow<S>(value(k + 1, column));
        return uint32_t(low.bits) | uint32_t(high.bits) << 16;
    }
    __device__ static int64_t position(int64_t k, int64_t column, const PackedOrder& order) {
        const int64_t lane = column % 8 * 4 + k % 8 / 2;
        return (order.place(column / 8, k / 16) * 64 + 2 * lane + k % 16 / 8) * 2 + k % 2;
    }
    __device__ static S rounded(float value) { return narrow<S>(value); }

    // sums[t] += rows [16, 16 steps] of `rows` (from element `first`, `stride` apart) times tile first_tile + t.
    template <int kCount, typename Packed>
    __device__ static void multiply(Sums<kCount>& sums, const Shared<S>& rows, int first, int stride, int steps,
                                    const Packed& packed, int first_tile) {
        const int lane = int(threadIdx.x) % 32;
        const int row = first + (lane % 16) * stride + lane / 16 * 8;
        multiply_steps(
            sums, steps, packed, first_tile,
            [&](uint32_t (&a)[4], int step) { ptx::ldmatrix_x4(a, rows.address_16(row + 16 * step)); }, mma);
    }

    // Both sides lie across their rows, so ldmatrix transposes.
    template <int kCount>
    __device__ static void multiply_rows(Sums<kCount>& sums, const RowProduct<S>& product, int rows) {
        const int lane = int(threadIdx.x) % 32, matrix = lane / 8;
        // The 8 x 8 matrices of an ldmatrix. Left:  0 | 1  n of 0 .. 7 | 8 .. 15, rows 0 .. 7
        //                                            2 | 3                        rows 8 .. 15
        //                                   Right: 0 | 2  a tile | the next one, rows 0 .. 7
        //                                          1 | 3                         rows 8 .. 15
        // Columns beyond the end are replaced by those before it.
        const int n = product.n + 8 < product.n_end ? product.n + matrix % 2 * 8 : product.n;
        const int left = (lane % 8 + matrix / 2 * 8) * product.left_stride + n;
        int right[(kCount + 1) / 2];
#pragma unroll
        for (int pair = 0; pair < (kCount + 1) / 2; ++pair) {
            const int column = product.column + 8 * (2 * pair + matrix / 2);
            right[pair] = (lane % 8 + matrix % 2 * 8) * product.right_stride +
                          (column < product.column_end ? column : product.column);
        }
        for (int first = 0; first < rows; first += 16) {
            uint32_t a[4], b[(kCount + 1) / 2][4];
            ptx::ldmatrix_x4_trans(a, product.left.address_16(left + first * product.left_stride));
#pragma unroll
            for (int pair = 0; pair < (kCount + 1) / 2; ++pair)
                ptx::ldmatrix_x4_trans(b[pair], product.right.address_16(right[pair] + first * product.right_stride));
#pragma unroll
            for (int t = 0; t < kCount; ++t) {
                const uint32_t registers[2] = {b[t / 2][2 * (t % 2)], b[t / 2][2 * (t % 2) + 1]};
                mma(sums[t], a, registers);
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

// fp32 rounded to tf32, by mma.sync m16n8k8.
struct Tf32 {
    using Storage = float;
    static constexpr int kDepth = 8, kWords = 64;

    template <typename Value>
    __device__ static uint32_t word(int64_t at, const PackedOrder& order, const Value& value) {
        const int r = int(at % 2), lane = int(at / 2 % 32);
        return ptx::tf32_from_float(
            value(order.step(at / 64) * 8 + lane % 4 + 4 * r, order.tile(at / 64) * 8 + lane / 4));
    }
    __device__ static int64_t position(int64_t k, int64_t column, const PackedOrder& order) {
        return order.place(column / 8, k / 8) * 64 + 2 * (column % 8 * 4 + k % 4) + k % 8 / 4;
    }
    __device__ static float rounded(float value) { return ptx::float_from_bits(ptx::tf32_from_float(value)); }

    template <int kCount, typename Packed>
    __device__ static void multiply(Sums<kCount>& sums, const Shared<float>& rows, int first, int stride, int steps,
                                    const Packed& packed, int first_tile) {
        const int lane = int(threadIdx.x) % 32;
        const int row = first + (lane % 16) * stride + lane / 16 * 4;
        const auto left = [&](uint32_t (&a)[4], int step) {
            ptx::ldmatrix_x4(a, rows.address_16(row + 8 * step));
            for (uint32_t& element : a) element = ptx::tf32_from_float(ptx::float_from_bits(element));
        };
        multiply_steps(sums, steps, packed, first_tile, left, ptx::mma_tf32);
    }

    template <int kCount>
    __device__ static void multiply_rows(Sums<kCount>& sums, const RowProduct<float>& product, int rows) {
        const int lane = int(threadIdx.x) % 32;
        for (int first = 0; first < rows; first += 8) {
            const int row = first + lane % 4;
            uint32_t a[4];
#pragma unroll
            for (int r = 0; r < 4; ++r)
                a[r] = ptx::tf32_from_float(product.left_at(row + 4 * (r / 2), lane / 4 + 8 * (r % 2)));
#pragma unroll
            for (int t = 0; t < kCount; ++t) {
                const int column = 8 * t + lane / 4;
                const uint32_t b[2] = {ptx::tf32_from_float(product.right_at(row, column)),
                                       ptx::tf32_from_float(product.right_at(row + 4, column))};
                ptx::mma_tf32(sums[t], a, b);
            }
        }
    }
};

// fp32 by FMA, with the sums on the same lanes.
struct Fma {
    using Storage = float;
    static constexpr int kDepth = 4, kWords = 32;

    template <typename Value>
    __device__ static uint32_t word(int64_t at, const PackedOrder& order, const Value& value) {
        return ptx::bits_from_float(value(order.step(at / 32) * 4 + at / 8 % 4, order.tile(at / 32) * 8 + at % 8));
    }
    __device__ static int64_t position(int64_t k, int64_t column, const PackedOrder& order) {
        return order.place(column / 8, k / 4) * 32 + k % 4 * 8 + column % 8;
    }
    __device__ static float rounded(float value) { return value; }

    template <int kCount, typename Packed>
    __device__ static void multiply(Sums<kCount>& sums, const Shared<float>& rows, int first, int stride, int steps,
                                    const Packed& packed, int first_tile) {
        const int lane = int(threadIdx.x) % 32;
        const int row = first + lane / 4 * stride;
        const int64_t at = int64_t(first_tile) * steps * 32 + 2 * (lane % 4);
        for (int step = 0; step < steps; ++step) {
            const auto upper = rows.template load<4>(row + 4 * step);
            const auto lower = rows.template load<4>(row + 8 * stride + 4 * step);
#pragma unroll
            for (int t = 0; t < kCount; ++t)
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const auto b = packed.template load<2>(at + (step * kCount + t) * 32 + 8 * k);
                    for (int c = 0; c < 2; ++c) {
                        const float weight = ptx::float_from_bits(b.at[c]);
                        sums[t][c] = fmaf(upper.at[k], weight, sums[t][c]);
                        sums[t][2 + c] = fmaf(lower.at[k], weight, sums[t][2 + c]);
                    }
                }
        }
    }

    template <int kCount>
    __device__ static void multiply_rows(Sums<kCount>& sums, const RowProduct<float>& product, int rows) {
        const int lane = int(threadIdx.x) % 32;
        for (int row = 0; row < rows; ++row) {
            const float upper = product.left_at(row, lane / 4), lower = product.left_at(row, lane / 4 + 8);
#pragma unroll
            for (int t = 0; t < kCount; ++t)
                for (int c = 0; c < 2; ++c) {
                    const float right = product.right_at(row, 8 * t + 2 * (lane % 4) + c);
                    sums[t][c] = fmaf(upper, right, sums[t][c]);
                    sums[t][2 + c] = fmaf(lower, right, sums[t][2 + c]);
                }
        }
    }
};

}  // namespace din_kernels::cuda
