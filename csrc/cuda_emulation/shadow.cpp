#include "shadow.h"

namespace din_kernels::emulation {
namespace {

// An access at (thread, epoch, warp_epoch) and one now are not ordered where no barrier lies between them, nor a
// __syncwarp in one warp.
bool unordered(int thread, uint32_t epoch, uint32_t warp_epoch, const Moment& now) {
    if (epoch != now.epoch || thread == now.thread) return false;
    return thread / 32 != now.thread / 32 || warp_epoch == now.warp_epoch;
}

}  // namespace

void Shadow::begin_block(uint32_t bytes, uint32_t epoch) {
    if (cells_.size() * kGrain < bytes) cells_.resize((bytes + kGrain - 1) / kGrain);
    first_epoch_ = epoch;
}

const char* Shadow::check(const Cell& cell, Access access, const Moment& now) const {
    if (cell.copy_epoch >= first_epoch_)
        return access == Access::kRead ? "is read before its asynchronous copy was waited for"
                                       : "is written while an asynchronous copy to it is on its way";
    const bool written = cell.write_epoch >= first_epoch_;
    if (access != Access::kWrite && !written) return "is read uninitialized";
    const bool both_atomic = access == Access::kAtomic && cell.written_atomically;
    if (written && !both_atomic && unordered(cell.writer, cell.write_epoch, cell.write_warp_epoch, now))
        return access == Access::kRead ? "is read while another thread writes it: no barrier lies between"
                                       : "is written by two threads: no barrier lies between";
    if (access == Access::kRead || cell.read_epoch != now.epoch) return nullptr;
    const bool other_warp = cell.read_by_warps || cell.reader / 32 != now.thread / 32;
    const bool other_lane = cell.read_warp_epoch == now.warp_epoch && (cell.read_by_lanes || cell.reader != now.thread);
    return other_warp || other_lane ? "is written while another thread reads it: no barrier lies between" : nullptr;
}

void Shadow::record_read(Cell& cell, const Moment& now) {
    if (cell.read_epoch != now.epoch) {
        cell.read_by_warps = cell.read_by_lanes = false;
    } else if (cell.reader / 32 != now.thread / 32) {
        cell.read_by_warps = true;
    } else if (cell.read_warp_epoch != now.warp_epoch) {
        cell.read_by_lanes = false;
    } else if (cell.reader != now.thread) {
        cell.read_by_lanes = true;
    }
    cell.reader = uint16_t(now.thread), cell.read_epoch = now.epoch, cell.read_warp_epoch = now.warp_epoch;
}

void Shadow::record_write(Cell& cell, bool atomic, const Moment& now) {
    cell.writer = uint16_t(now.thread), cell.write_epoch = now.epoch, cell.write_warp_epoch = now.warp_epoch;
    cell.written_atomically = atomic;
}

const char* Shadow::access(uint32_t offset, uint32_t bytes, Access access, const Moment& now) {
    for (uint32_t at = offset / kGrain; at < (offset + bytes + kGrain - 1) / kGrain; ++at) {
        Cell& cell = cells_[at];
        if (const char* fault = check(cell, access, now)) return fault;
        if (access == Access::kRead)
            record_read(cell, now);
        else
            record_write(cell, access == Access::kAtomic, now);
    }
    return nullptr;
}

// The copy may land at any time from here on, so it counts as a write both now and when it is waited for.
const char* Shadow::start_copy(uint32_t offset, uint32_t bytes, const Moment& now) {
    for (uint32_t at = offset / kGrain; at < (offset + bytes) / kGrain; ++at) {
        if (const char* fault = check(cells_[at], Access::kWrite, now)) return fault;
        cells_[at].copy_epoch = now.epoch;
    }
    return nullptr;
}

void Shadow::finish_copy(uint32_t offset, uint32_t bytes, const Moment& now) {
    for (uint32_t at = offset / kGrain; at < (offset + bytes) / kGrain; ++at) {
        cells_[at].copy_epoch = 0;
        record_write(cells_[at], false, now);
    }
}

}  // namespace din_kernels::emulation
