// Memory of one call, aligned to a cache line. What a call gives back is kept for the thread's next call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace din_kernels::cpu {

// Blocks of memory that their thread keeps, up to kKept bytes, the latest given first. Memory fresh from the system
// costs a page fault per 4 KB, and scratch taken from the heap splits the hole that a freed tensor left, so that the
// caller's next tensor of that size costs page faults too.
constexpr size_t kKept = size_t(32) << 20;
void* take_block(size_t bytes);  // throws std::bad_alloc
void give_block(void* block, size_t bytes);

// Whether fresh blocks hold signalling NaNs: in sanitized builds (DIN_KERNELS_POISON).
bool scratch_is_poisoned();

template <typename T>
class Buffer {
 public:
    Buffer() = default;
    explicit Buffer(int64_t count, bool zero = false) {
        const size_t bytes = size_t(count) * sizeof(T);
        if (bytes == 0) return;
        data_ = {static_cast<T*>(take_block(bytes)), Give{bytes}};
        if (zero) std::memset(data_.get(), 0, bytes);
    }
    T* data() const { return data_.get(); }

 private:
    struct Give {
        size_t bytes = 0;
        void operator()(T* block) const { give_block(block, bytes); }
    };
    std::unique_ptr<T, Give> data_;
};

}  // namespace din_kernels::cpu
