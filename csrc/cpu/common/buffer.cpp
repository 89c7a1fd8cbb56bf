#include "common/buffer.h"

#include <algorithm>
#include <new>
#include <vector>

namespace din_kernels::cpu {
namespace {

// Bytes rounded up to an eighth of their power of two: calls of nearly the same size share their blocks.
[[maybe_unused]] size_t size_class(size_t bytes) {
    size_t step = 64;
    while (step * 16 <= bytes) step *= 2;
    return (bytes + step - 1) / step * step;
}

class Kept {
 public:
    ~Kept() {
        for (const Block& block : blocks_) std::free(block.memory);
    }

    void* take(size_t bytes) {
        for (size_t i = blocks_.size(); i-- > 0;)
            if (blocks_[i].bytes == bytes) {
                void* memory = blocks_[i].memory;
                drop(i);
                return memory;
            }
        void* memory = std::aligned_alloc(64, bytes);
        if (!memory) throw std::bad_alloc();
        return memory;
    }

    void give(void* memory, size_t bytes) {
        if (bytes > kKept) return std::free(memory);
        while (total_ + bytes > kKept) {
            std::free(blocks_[0].memory);
            drop(0);
        }
        blocks_.push_back({memory, bytes});
        total_ += bytes;
    }

 private:
    struct Block {
        void* memory;
        size_t bytes;
    };
    void drop(size_t at) {
        total_ -= blocks_[at].bytes;
        blocks_.erase(blocks_.begin() + int64_t(at));
    }
    std::vector<Block> blocks_;  // the one that has waited longest first
    size_t total_ = 0;
};

[[maybe_unused]] Kept& kept() {
    thread_local Kept blocks;
    return blocks;
}

}  // namespace

#ifdef DIN_KERNELS_POISON
// For sanitized builds. A block is as long as was asked for, so that AddressSanitizer sees its end, is never used
// again, and holds signalling NaNs of float: arithmetic on memory that nobody wrote raises FE_INVALID.
void* take_block(size_t bytes) {
    constexpr uint32_t kSignalling = 0x7fa00001;
    void* block = nullptr;
    if (posix_memalign(&block, 64, bytes) != 0) throw std::bad_alloc();
    std::fill_n(static_cast<uint32_t*>(block), bytes / sizeof(uint32_t), kSignalling);
    return block;
}
void give_block(void* block, size_t) { std::free(block); }
bool scratch_is_poisoned() { return true; }
#else
void* take_block(size_t bytes) { return kept().take(size_class(bytes)); }
void give_block(void* block, size_t bytes) { kept().give(block, size_class(bytes)); }
bool scratch_is_poisoned() { return false; }
#endif

}  // namespace din_kernels::cpu
