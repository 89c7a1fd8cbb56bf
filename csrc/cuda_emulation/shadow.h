// The shadow knows of every two bytes of a block's shared memory who wrote and who read them, when, and whether an
// asynchronous copy to them is still on its way.
#pragma once

#include <cstdint>
#include <vector>

namespace din_kernels::emulation {

// A thread at a moment. `epoch` counts barriers, over all blocks and launches; `warp_epoch` counts __syncwarp of the
// thread's warp since the block began.
struct Moment {
    int thread;
    uint32_t epoch, warp_epoch;
};

enum class Access { kRead, kWrite, kAtomic };

class Shadow {
 public:
    static constexpr uint32_t kGrain = 2;  // bytes: the smallest element

    void begin_block(uint32_t bytes, uint32_t epoch);
    // The first two return null, or the fault of the access.
    const char* access(uint32_t offset, uint32_t bytes, Access access, const Moment& now);
    const char* start_copy(uint32_t offset, uint32_t bytes, const Moment& now);
    void finish_copy(uint32_t offset, uint32_t bytes, const Moment& now);

 private:
    struct Cell {
        uint32_t write_epoch = 0, write_warp_epoch = 0;
        uint32_t read_epoch = 0, read_warp_epoch = 0;
        uint16_t writer = 0, reader = 0;
        bool written_atomically = false;
        bool read_by_warps = false;  // by more than one warp since the last barrier
        bool read_by_lanes = false;  // by more than one lane of the reader's warp since its last __syncwarp
        uint32_t copy_epoch = 0;     // epoch in which a copy on its way was started, else 0
    };
    const char* check(const Cell& cell, Access access, const Moment& now) const;
    static void record_read(Cell& cell, const Moment& now);
    static void record_write(Cell& cell, bool atomic, const Moment& now);

    std::vector<Cell> cells_;
    uint32_t first_epoch_ = 1;  // of this block; memory that was written before it is not initialized
};

}  // namespace din_kernels::emulation
