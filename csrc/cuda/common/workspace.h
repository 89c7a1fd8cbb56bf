// Cuts the scratch memory of a call into arrays. It is plain C++, so that callers can ask for the size beforehand.
#pragma once

#include <cstdint>

namespace din_kernels::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Carve {
 public:
    // Byte offset of the next array, aligned for every access.
    int64_t add(int64_t count, int64_t element_bytes) {
        const int64_t begin = bytes_;
        bytes_ += ceil_div(count * element_bytes, 256) * 256;
        return begin;
    }
    int64_t bytes() const { return bytes_; }

 private:
    int64_t bytes_ = 0;
};

template <typename T>
T* carved(void* workspace, int64_t offset) {
    return reinterpret_cast<T*>(static_cast<char*>(workspace) + offset);
}

}  // namespace din_kernels::cuda
