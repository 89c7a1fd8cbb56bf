// Arrays in the workspace as kernels take them.
#pragma once

#include "common/accessors.cuh"
#include "common/workspace.h"

namespace din_kernels::cuda {

// `size` elements from byte `offset` of the workspace on.
template <typename T>
Global<T> carved_array(void* workspace, int64_t offset, int64_t size) {
    return {carved<T>(workspace, offset), size};
}

// No array, where an optional one is left out.
template <typename T>
Global<T> no_array() {
    return {nullptr, 0};
}

}  // namespace din_kernels::cuda
