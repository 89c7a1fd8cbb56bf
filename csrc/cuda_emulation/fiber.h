// Every emulated thread has a stack of its own; a fiber switches between that and the scheduler's.
#pragma once

#include <cstddef>
#include <vector>

namespace din_kernels::emulation {

// Runs `entry(argument)` on a stack of its own. A fiber that is left before its end is simply dropped: what runs on it
// must need no destructor.
class Fiber {
 public:
    // `stack` [bytes] stays the caller's and is overwritten.
    void start(char* stack, size_t bytes, void (*entry)(void*), void* argument);
    void resume();   // from the scheduler: until the fiber suspends
    void suspend();  // from within the fiber: back to the scheduler

 private:
    static void begin();

    void* own_ = nullptr;
    void* scheduler_ = nullptr;
    char* stack_ = nullptr;
    size_t bytes_ = 0;
    void (*entry_)(void*) = nullptr;
    void* argument_ = nullptr;
    // AddressSanitizer is told of the two stacks by these; they are unused without it.
    void* fake_own_ = nullptr;
    void* fake_scheduler_ = nullptr;
    const void* scheduler_stack_ = nullptr;
    size_t scheduler_bytes_ = 0;
};

// Stacks with an inaccessible page below each, so that an overflow is a crash and not another thread's data.
class Stacks {
 public:
    static constexpr size_t kBytes = 128 * 1024;  // untouched pages cost nothing
    ~Stacks();
    char* at(size_t index);  // usable bytes: kBytes

 private:
    std::vector<char*> stacks_;
};

}  // namespace din_kernels::emulation
