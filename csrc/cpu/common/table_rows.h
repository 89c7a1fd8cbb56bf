// Rows of embedding tables, which are in memory and not in any cache: prefetch, and n_j.
// Included by kernels.cpp alone; internal linkage, as in simd.h.
#pragma once

#include "common/prefetch.h"
#include "din_kernels/arrays.h"

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

// Entries between a prefetch and its use. A row of 64 floats is 4 lines; with its state and gradient 8 entries are
// about 60 lines, as many as a core keeps in flight.
constexpr int64_t kAhead = 8;

DIN_KERNELS_PREFETCHES void prefetch_count(const Counts& counts, int64_t id) {
    const bool wide = counts.type == CountType::kInt64 || counts.type == CountType::kDouble;
    __builtin_prefetch(static_cast<const char*>(counts.data) + id * (wide ? 8 : 4));
}

// n_j; an id of the batch is in one sample at least, so one that training never counted has n_j = 1.
inline double count_of(const Counts& counts, int64_t id) {
    double n = 0;
    switch (counts.type) {
        case CountType::kInt32:
            n = static_cast<const int32_t*>(counts.data)[id];
            break;
        case CountType::kInt64:
            n = double(static_cast<const int64_t*>(counts.data)[id]);
            break;
        case CountType::kFloat:
            n = static_cast<const float*>(counts.data)[id];
            break;
        case CountType::kDouble:
            n = static_cast<const double*>(counts.data)[id];
            break;
    }
    return n > 1 ? n : 1;
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
