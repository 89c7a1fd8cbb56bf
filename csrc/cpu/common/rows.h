// Rows of a Source, from where they lie or by id from tables, into packed tiles; and their gradients back.
#pragma once

#include "common/prefetch.h"
#include "common/storage.h"
#include "din_kernels/local_activation.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

constexpr int64_t kRowsAhead = 6;  // rows by id are fetched so many rows before their turn

inline int64_t bytes_of(DType dtype) { return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2; }

// to[0 .. count) = the values from element `at` of `from` on
inline void read_values(DType dtype, const void* from, int64_t at, int64_t count, float* to) {
    if (dtype == DType::kFloat)
        widen_row(static_cast<const float*>(from) + at, count, to);
    else if (dtype == DType::kBf16)
        widen_row(static_cast<const BFloat16*>(from) + at, count, to);
    else
        widen_row(static_cast<const Float16*>(from) + at, count, to);
}
inline void read_values(DType, const void* from, int64_t at, int64_t count, double* to) {
    widen_row(static_cast<const double*>(from) + at, count, to);
}

inline void write_values(DType dtype, const float* from, int64_t count, void* to, int64_t at) {
    if (dtype == DType::kFloat)
        narrow_row(from, count, static_cast<float*>(to) + at);
    else if (dtype == DType::kBf16)
        narrow_row(from, count, static_cast<BFloat16*>(to) + at);
    else
        narrow_row(from, count, static_cast<Float16*>(to) + at);
}
inline void write_values(DType, const double* from, int64_t count, void* to, int64_t at) {
    narrow_row(from, count, static_cast<double*>(to) + at);
}

template <typename T>
inline void copy_values(const T* from, int64_t count, T* to) {
    widen_row(from, count, to);
}

inline int64_t table_row(const Table& table, int64_t row) {
    if (!table.ids.data) return row;
    return table.ids.is_int64 ? static_cast<const int64_t*>(table.ids.data)[row]
                              : static_cast<const int32_t*>(table.ids.data)[row];
}

DIN_KERNELS_PREFETCHES void prefetch_row(const Source& source, DType dtype, int64_t row) {
    for (int k = 0; k < source.count; ++k) {
        const Table& table = source.tables[k];
        const int64_t bytes = table.width * bytes_of(dtype);
        prefetch(static_cast<const char*>(table.values) + table_row(table, row) * bytes, bytes);
    }
}

// to[0 .. dim_p) = the row, zeros behind its D values
template <typename T>
inline void fetch_row(const Source& source, DType dtype, int64_t row, int64_t dim_p, T* to) {
    int64_t column = 0;
    for (int k = 0; k < source.count; ++k) {
        const Table& table = source.tables[k];
        read_values(dtype, table.values, table_row(table, row) * table.width, table.width, to + column);
        column += table.width;
    }
    for (; column < dim_p; ++column) to[column] = 0;
}

// The gradient of row `row`, cut into the columns of its tables.
template <typename T>
inline void write_row_grad(const Source& source, const RowGrads& grads, DType dtype, int64_t row, const T* from) {
    for (int k = 0; k < source.count; ++k) {
        const int64_t width = source.tables[k].width;
        write_values(dtype, from, width, grads.values[k], row * width);
        from += width;
    }
}

template <typename T>
constexpr DType kDTypeOf = sizeof(T) == 8 ? DType::kDouble : DType::kFloat;

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
