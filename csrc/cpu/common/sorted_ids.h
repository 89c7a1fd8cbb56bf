// The ids of a batch with their positions, sorted, so that the entries of one row lie side by side.
#pragma once

#include <cstdint>

#include "common/buffer.h"
#include "din_kernels/arrays.h"

namespace din_kernels::cpu {

// [N] keys id << 32 | position, ascending; ids and N are below 2^32. A stable radix sort of the ids: the result does
// not depend on the number of threads, nor on anything but the ids.
Buffer<uint64_t> sorted_ids(const Ids& ids, int64_t entries, int threads);

inline int64_t id_of(uint64_t key) { return int64_t(key >> 32); }
inline int64_t position_of(uint64_t key) { return int64_t(uint32_t(key)); }

}  // namespace din_kernels::cpu
