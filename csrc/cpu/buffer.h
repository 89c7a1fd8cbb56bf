// Memory aligned to a cache line, freed with its owner.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace din_kernels::cpu {

template <typename T>
class Buffer {
 public:
    Buffer() = default;
    explicit Buffer(int64_t count, bool zero = false) {
        const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
        if (bytes == 0) return;
        data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
        if (!data_) throw std::bad_alloc();
        if (zero) std::memset(data_.get(), 0, bytes);
    }
    T* data() const { return data_.get(); }

 private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    std::unique_ptr<T, Free> data_;
};

}  // namespace din_kernels::cpu
