// One register-blocked product for everything: C[i, j] = init[i, j] + sum_k A[i, k] B[k, j], A broadcast element by
// element, B and C vectors of j. A's two strides are free, so the same kernel multiplies by a transpose.
#pragma once

#include "simd.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

#if defined(__AVX512F__)
// 32 registers: rows x vectors accumulators + one row of B + one broadcast, at most 31.
constexpr int kMaxVectors = 5;
constexpr int kRowsFor[kMaxVectors + 1] = {0, 12, 12, 8, 6, 5};
#else
// 16 registers.
constexpr int kMaxVectors = 3;
constexpr int kRowsFor[kMaxVectors + 1] = {0, 8, 6, 4};
#endif
constexpr int64_t kPanelBytes = 24 * 1024;  // B's panel stays in half of L1

template <int ROWS, int VECTORS, typename T>
inline __attribute__((always_inline)) void micro_kernel(int64_t depth, const T* __restrict__ a, int64_t a_row,
                                                        int64_t a_col, const T* __restrict__ b, int64_t ldb,
                                                        const T* init, int64_t ldi, T* c, int64_t ldc) {
    Vec<T> acc[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) acc[i][j] = load(init + i * ldi + j * kLanes<T>);
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> row[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) row[j] = load(b + j * kLanes<T>);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
            const Vec<T> x = splat(a[i * a_row]);
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; ++j) acc[i][j] += x * row[j];
        }
        a += a_col;
        b += ldb;
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) store(c + i * ldc + j * kLanes<T>, acc[i][j]);
}

template <int ROWS, int VECTORS, typename T>
__attribute__((noinline)) void row_block(int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b,
                                         int64_t ldb, const T* init, int64_t ldi, T* c, int64_t ldc) {
    micro_kernel<ROWS, VECTORS>(depth, a, a_row, a_col, b, ldb, init, ldi, c, ldc);
}

// The rows that are left when fewer than a full block remain.
template <int ROWS, int VECTORS, typename T>
inline void last_rows(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb,
                      const T* init, int64_t ldi, T* c, int64_t ldc) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            row_block<ROWS, VECTORS>(depth, a, a_row, a_col, b, ldb, init, ldi, c, ldc);
        else
            last_rows<ROWS - 1, VECTORS>(rows, depth, a, a_row, a_col, b, ldb, init, ldi, c, ldc);
    }
}

template <int VECTORS, typename T>
void panel(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb,
           const T* init, int64_t ldi, T* c, int64_t ldc) {
    constexpr int kRows = kRowsFor[VECTORS];
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows)
        row_block<kRows, VECTORS>(depth, a + i * a_row, a_row, a_col, b, ldb, init + i * ldi, ldi, c + i * ldc, ldc);
    last_rows<kRows - 1, VECTORS>(rows - i, depth, a + i * a_row, a_row, a_col, b, ldb, init + i * ldi, ldi,
                                  c + i * ldc, ldc);
}

// `columns` is a multiple of the vector; ldi = 0 takes one row (a bias) for all; init may be C itself.
template <typename T>
void gemm(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b,
          int64_t ldb, const T* init, int64_t ldi, T* c, int64_t ldc) {
    const int64_t vectors = columns / kLanes<T>, panels = (vectors + kMaxVectors - 1) / kMaxVectors;
    for (int64_t p = 0, v = 0; p < panels; ++p) {
        const int64_t width = (vectors - v + panels - p - 1) / (panels - p), j = v * kLanes<T>;
        v += width;
        // Depth in equal blocks, so that a block of B is read from L1 by all rows.
        const int64_t most = kPanelBytes / (width * kVectorBytes),
                      blocks = depth > most ? (depth + most - 1) / most : 1;
        for (int64_t block = 0, k = 0; block < blocks; ++block) {
            const int64_t step = (depth - k + blocks - block - 1) / (blocks - block);
            const T* from = block ? c + j : init + j;
            const int64_t ld = block ? ldc : ldi;
            const T *a_k = a + k * a_col, *b_k = b + k * ldb + j;
            switch (width) {
                case 1:
                    panel<1>(rows, step, a_k, a_row, a_col, b_k, ldb, from, ld, c + j, ldc);
                    break;
                case 2:
                    panel<2>(rows, step, a_k, a_row, a_col, b_k, ldb, from, ld, c + j, ldc);
                    break;
                case 3:
                    panel<3>(rows, step, a_k, a_row, a_col, b_k, ldb, from, ld, c + j, ldc);
                    break;
#if defined(__AVX512F__)
                case 4:
                    panel<4>(rows, step, a_k, a_row, a_col, b_k, ldb, from, ld, c + j, ldc);
                    break;
                case 5:
                    panel<5>(rows, step, a_k, a_row, a_col, b_k, ldb, from, ld, c + j, ldc);
                    break;
#endif
            }
            k += step;
        }
    }
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
