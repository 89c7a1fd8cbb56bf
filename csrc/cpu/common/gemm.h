// One register-blocked product for everything: C[i, j] = init[i, j] + sum_k A[i, k] B[k, j], A broadcast element by
// element, B and C vectors of j. A's two strides are free, so the same kernel multiplies by a transpose.
#pragma once

#include <type_traits>

#include "common/simd.h"

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

#if defined(__AVX512F__)
// A column block may end with half a vector: 40 columns cost 2.5 vectors, not 3.
template <typename T>
struct HalfOf {
    typedef T type __attribute__((vector_size(kVectorBytes / 2)));
    typedef T unaligned __attribute__((vector_size(kVectorBytes / 2), aligned(sizeof(T)), may_alias));
};
constexpr bool kHasHalf = true;
#else
template <typename T>
struct HalfOf {
    using type = Vec<T>;
    using unaligned = typename VecOf<T>::unaligned;
};
constexpr bool kHasHalf = false;
#endif
template <typename T>
using Half = typename HalfOf<T>::type;

template <typename T>
inline Half<T> load_half(const T* p) {
    return *reinterpret_cast<const typename HalfOf<T>::unaligned*>(p);
}
template <typename T>
inline void store_half(T* p, Half<T> v) {
    *reinterpret_cast<typename HalfOf<T>::unaligned*>(p) = v;
}

// A block of ROWS rows and VECTORS vectors of columns, behind them half a vector more with HALF.
template <int ROWS, int VECTORS, bool HALF, typename T>
inline __attribute__((always_inline)) void micro_kernel(int64_t depth, const T* __restrict__ a, int64_t a_row,
                                                        int64_t a_col, const T* __restrict__ b, int64_t ldb,
                                                        const T* init, int64_t ldi, T* c, int64_t ldc) {
    constexpr int64_t kTail = VECTORS * kLanes<T>;
    Vec<T> acc[ROWS][VECTORS + 1];
    Half<T> tail[ROWS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) acc[i][j] = load(init + i * ldi + j * kLanes<T>);
        if constexpr (HALF) tail[i] = load_half(init + i * ldi + kTail);
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vec<T> row[VECTORS + 1];
        Half<T> row_tail;
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) row[j] = load(b + j * kLanes<T>);
        if constexpr (HALF) row_tail = load_half(b + kTail);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) {
            const T x = a[i * a_row];
            if constexpr (VECTORS > 0) {
                const Vec<T> all = splat(x);
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) acc[i][j] += all * row[j];
            }
            if constexpr (HALF) tail[i] += (x - Half<T>{}) * row_tail;
        }
        a += a_col;
        b += ldb;
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) store(c + i * ldc + j * kLanes<T>, acc[i][j]);
        if constexpr (HALF) store_half(c + i * ldc + kTail, tail[i]);
    }
}

template <int ROWS, int VECTORS, bool HALF, typename T>
__attribute__((noinline)) void row_block(int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b,
                                         int64_t ldb, const T* init, int64_t ldi, T* c, int64_t ldc) {
    micro_kernel<ROWS, VECTORS, HALF>(depth, a, a_row, a_col, b, ldb, init, ldi, c, ldc);
}

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

// C[ROWS, one vector] in float, added up in double. A layer as narrow as a vector has gradients of one to four numbers,
// sums of terms that cancel: products that are rounded before they are added left an error of 1.1e-6 in the gradient of
// one slope, where fused ones leave 2.7e-7. Wide layers stay in float, at half the time.
template <int ROWS>
__attribute__((noinline)) void exact_rows(int64_t depth, const float* a, int64_t a_row, int64_t a_col, const float* b,
                                          int64_t ldb, const float* init, int64_t ldi, float* c, int64_t ldc) {
    typedef float Floats __attribute__((vector_size(kVectorBytes / 2), aligned(sizeof(float)), may_alias));
    constexpr int kHalf = kLanes<float> / 2;
    const auto wide = [](const float* p) {
        return __builtin_convertvector(*reinterpret_cast<const Floats*>(p), Vec<double>);
    };
    Vec<double> low[ROWS], high[ROWS];
    for (int i = 0; i < ROWS; ++i) low[i] = wide(init + i * ldi), high[i] = wide(init + i * ldi + kHalf);
    for (int64_t k = 0; k < depth; ++k, a += a_col, b += ldb) {
        const Vec<double> b_low = wide(b), b_high = wide(b + kHalf);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; ++i) {
            const Vec<double> x = splat(double(a[i * a_row]));
            low[i] += x * b_low;
            high[i] += x * b_high;
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        *reinterpret_cast<Floats*>(c + i * ldc) = __builtin_convertvector(low[i], Floats);
        *reinterpret_cast<Floats*>(c + i * ldc + kHalf) = __builtin_convertvector(high[i], Floats);
    }
}

// The rows that are left when fewer than a full block remain.
template <int ROWS, int VECTORS, bool HALF, typename T>
inline void last_rows(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb,
                      const T* init, int64_t ldi, T* c, int64_t ldc) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            row_block<ROWS, VECTORS, HALF>(depth, a, a_row, a_col, b, ldb, init, ldi, c, ldc);
        else
            last_rows<ROWS - 1, VECTORS, HALF>(rows, depth, a, a_row, a_col, b, ldb, init, ldi, c, ldc);
    }
}

template <int VECTORS, bool HALF, typename T>
void panel(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb,
           const T* init, int64_t ldi, T* c, int64_t ldc) {
    int64_t i = 0;
    if constexpr (!kFused && VECTORS == 1 && std::is_same_v<T, float>) {
        for (; i + 4 <= rows; i += 4)
            exact_rows<4>(depth, a + i * a_row, a_row, a_col, b, ldb, init + i * ldi, ldi, c + i * ldc, ldc);
        for (; i < rows; ++i)
            exact_rows<1>(depth, a + i * a_row, a_row, a_col, b, ldb, init + i * ldi, ldi, c + i * ldc, ldc);
        return;
    }
    constexpr int kRows = kRowsFor[VECTORS + HALF];
    for (; i + kRows <= rows; i += kRows)
        row_block<kRows, VECTORS, HALF>(depth, a + i * a_row, a_row, a_col, b, ldb, init + i * ldi, ldi, c + i * ldc,
                                        ldc);
    last_rows<kRows - 1, VECTORS, HALF>(rows - i, depth, a + i * a_row, a_row, a_col, b, ldb, init + i * ldi, ldi,
                                        c + i * ldc, ldc);
}

// panel<units, false>, or with half a vector in place of the last unit
template <int MOST, typename T, typename... Rest>
inline void panel_of(int64_t units, bool half, Rest... rest) {
    if constexpr (MOST > 0) {
        if (units < MOST) return panel_of<MOST - 1, T>(units, half, rest...);
        if constexpr (kHasHalf)
            if (half) return panel<MOST - 1, true, T>(rest...);
        panel<MOST, false, T>(rest...);
    }
}

// Columns are computed up to a multiple of the vector (half of it with AVX-512), so rows of B, init and C must be so
// long; ldi = 0 takes one row (a bias) for all; init may be C itself.
template <typename T>
void gemm(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b,
          int64_t ldb, const T* init, int64_t ldi, T* c, int64_t ldc) {
    const int64_t units = (columns + kLanes<T> - 1) / kLanes<T>, panels = (units + kMaxVectors - 1) / kMaxVectors;
    const bool ends_with_half = kHasHalf && units * kLanes<T> - columns >= kLanes<T> / 2;
    for (int64_t p = 0, u = 0; p < panels; ++p) {
        const int64_t width = (units - u + panels - p - 1) / (panels - p), j = u * kLanes<T>;
        u += width;
        // Depth in equal blocks, so that a block of B is read from L1 by all rows.
        const int64_t most = kPanelBytes / (width * kVectorBytes),
                      blocks = depth > most ? (depth + most - 1) / most : 1;
        for (int64_t block = 0, k = 0; block < blocks; ++block) {
            const int64_t step = (depth - k + blocks - block - 1) / (blocks - block);
            panel_of<kMaxVectors, T>(width, ends_with_half && p + 1 == panels, rows, step, a + k * a_col, a_row, a_col,
                                     b + k * ldb + j, ldb, block ? c + j : init + j, block ? ldc : ldi, c + j, ldc);
            k += step;
        }
    }
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
