// Memory asked for before its turn. Included by kernels.cpp alone; internal linkage, as in simd.h.
#pragma once

#include <cstdint>

// For every function whose only effect is to prefetch: GCC takes such a function for one without any and drops its
// calls, unless they were inlined before it looks.
#define DIN_KERNELS_PREFETCHES inline __attribute__((always_inline))

namespace din_kernels::cpu::DIN_KERNELS_ISA {
namespace {

DIN_KERNELS_PREFETCHES void prefetch(const void* from, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(from) + line);
}

}  // namespace
}  // namespace din_kernels::cpu::DIN_KERNELS_ISA
